"""The commands there are: to add one, write `cli/<name>.py` with `parser()` and `main(args)` and a line here."""

DORA_VERBS = {
    'run': 'train an XP (again: resume it), e.g. run solver=mmaudio/debug',
    'grid': 'show and schedule the XPs of a grid file, e.g. grid mmaudio.debug --dry_run --init',
    'info': 'an XP: folder, overrides, -m last metrics, -t log, -v whole config, e.g. info -f SIG -m',
}

OWN_VERBS = {
    'sig': 'print the signature of an XP, e.g. sig solver=mmaudio/debug',
    'make_example': 'make example videos (or audio) with known events',
    'partition_clips': 'list the clips of long audio files in a table',
    'extract': 'media and captions to a store: latents and features',
    'check': 'say whether stores and tables are sound',
    'generate': 'give sound to a video file with a trained XP',
    'page': 'write the page of an XP again from its folder, e.g. page SIG',
    'weights': 'external weights: list, verify, fetch',
}

VERBS = {**DORA_VERBS, **OWN_VERBS}
