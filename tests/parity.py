"""Check this project against numbers recorded from the systems that it follows.

    python tests/parity.py [-v] PATH...

A path is a fixture or a folder of them (`tests/golden`). Prints `kind  max_rel_err  ok|FAIL|skipped` for every fixture,
then `N passed, N failed, N skipped`. Exits with 1 when one fails or is of an unknown kind, and with 2 on a wrong path.
Kinds that are known, but have no check yet, are skipped.
"""

import argparse
import dataclasses
import importlib
import math
import pkgutil
import sys
import traceback
import typing as tp
from pathlib import Path

_HERE = Path(__file__).absolute().parent
for _folder in (_HERE.parent, _HERE):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import parity_checks  # noqa: E402
from parity_checks.base import CheckFn, Fixture, Report  # noqa: E402
from parity_checks.kinds import UnknownKind, find_fixtures  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of one fixture: `ok`, `FAIL` or `skipped`, and the report where a check ran."""
    name: str
    status: str
    path: Path
    report: tp.Optional[Report] = None
    problems: tuple[str, ...] = ()


def load_checks() -> dict[str, CheckFn]:
    """All checks of the modules in `parity_checks`, from `system/kind` to function."""
    checks: dict[str, CheckFn] = {}
    for info in pkgutil.iter_modules(parity_checks.__path__):
        module = importlib.import_module(f'parity_checks.{info.name}')
        for name, check in getattr(module, 'CHECKS', {}).items():
            assert name not in checks, f'{name} has two checks'
            checks[name] = check
    return checks


def run(item: tp.Union[Fixture, UnknownKind], checks: dict[str, CheckFn]) -> Result:
    """Run the check of one fixture; an exception in it is a failure."""
    if isinstance(item, UnknownKind):
        return Result(item.name, 'FAIL', item.path, problems=(f'{item.path} is of no known kind',))
    if item.name not in checks:
        return Result(item.name, 'skipped', item.path)
    try:
        report = Report(tolerance=item.tolerance)
        checks[item.name](item, report)
    except Exception:
        return Result(item.name, 'FAIL', item.path, problems=(traceback.format_exc().rstrip(),))
    problems = tuple(report.problems)
    return Result(item.name, 'FAIL' if problems else 'ok', item.path, report, problems)


def show(result: Result, verbose: bool) -> None:
    """Print the line of one result; details of a failure, and with `verbose` every comparison, below it."""
    error = f'{result.report.max_rel_err:.2e}' if result.report else 'inf' if result.status == 'FAIL' else '-'
    print(f'{result.name:<44}  {error:>11}  {result.status}', flush=True)
    if verbose:
        print(f'    {result.path}')
        for item in result.report.comparisons if result.report else ():
            value = '-' if math.isinf(item.rel_err) else f'{item.rel_err:.2e}'
            print(f'    {item.name:<60}  {value:>9}  {item.problem or "ok"}')
    problems = [] if verbose and result.report else list(result.problems)
    for problem in problems if verbose else problems[:5]:
        print('    ' + problem.replace('\n', '\n    '))


def main(argv: tp.Optional[list[str]] = None) -> int:
    """Run the checks of the paths in `argv` and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-v', '--verbose', action='store_true', help='show every comparison')
    parser.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='a fixture or a folder of fixtures')
    args = parser.parse_args(argv)
    missing = [path for path in args.paths if not path.exists()]
    if missing:
        print(f'No such file or folder: {", ".join(map(str, missing))}', file=sys.stderr)
        return 2
    checks = load_checks()
    results = []
    for item in find_fixtures(args.paths):
        results.append(run(item, checks))
        show(results[-1], args.verbose)
    counts = {status: sum(result.status == status for result in results) for status in ('ok', 'FAIL', 'skipped')}
    print(f'{counts["ok"]} passed, {counts["FAIL"]} failed, {counts["skipped"]} skipped')
    return 1 if counts['FAIL'] or not results else 0


if __name__ == '__main__':
    sys.exit(main())
