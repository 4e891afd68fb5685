"""How the pages look and move: one style sheet, one script, and the policy that lets in nothing else."""

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1d2024; --soft: #5c636d; --line: #e3e4e2;
  --accent: #1f6fb2; --warn: #8a5a00; --code: #f1f2f0; }
@media (prefers-color-scheme: dark) { :root { --paper: #131518; --card: #1a1d21; --ink: #e7e8ea; --soft: #9aa2ad;
  --line: #2c3036; --accent: #74b3e8; --warn: #e0b25a; --code: #22262b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .9rem; letter-spacing: -.005em; }
p { margin: .4rem 0; max-width: 44rem; }
a { color: var(--accent); }
code, pre { font: .86em/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--code); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; margin: .5rem 0 1rem; }
.soft, .facts { color: var(--soft); } p.soft { max-width: none; }
nav { display: flex; flex-wrap: wrap; gap: 0 1.1rem; } nav a { font-size: .92rem; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.note { color: var(--warn); overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; padding: 0; margin: .3rem 0; list-style: none;
  font-size: .92rem; }
.facts b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.25rem;
  margin: 0 0 1.25rem; }
.prompt { margin: 0; font-size: 1.06rem; font-weight: 600; overflow-wrap: anywhere; max-width: none; }
.take { display: grid; grid-template-columns: 16rem minmax(0, 1fr); gap: .25rem 1.1rem; margin-top: 1rem;
  align-items: start; }
.take h3 { grid-column: 1 / -1; margin: 0; font-size: .82rem; font-weight: 600; color: var(--soft); }
.take audio { align-self: center; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 1.5rem; }
.pair .take { grid-template-columns: minmax(0, 1fr); align-content: start; }
video, audio { width: 100%; display: block; }
video { border-radius: 6px; background: #000; }
.picture { position: relative; cursor: crosshair; }
.picture img { display: block; width: 100%; height: 10.6rem; border-radius: 6px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 10.6rem; pointer-events: none; }
.event { stroke: #fff; stroke-width: 1; stroke-opacity: .8; }
.head { stroke: #5fd0ff; stroke-width: 2; visibility: hidden; }
.ruler { display: block; width: 100%; height: 1.4rem; overflow: visible; font-size: .72rem; fill: var(--soft); }
.ruler line { stroke: var(--soft); stroke-width: 1; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.curves img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th { text-align: left; font-size: .82rem; font-weight: 600; color: var(--soft); padding: .3rem .6rem .3rem 0; }
td { border-top: 1px solid var(--line); padding: .6rem .9rem .6rem 0; vertical-align: top; }
td.name { width: 44%; } td.name b, td.value, .chip { font-variant-numeric: tabular-nums; }
td.value { font-size: 1.15rem; font-weight: 600; white-space: nowrap; }
td.name div { color: var(--soft); font-size: .88rem; line-height: 1.4; }
td.value.none { white-space: normal; max-width: 14rem; font-size: .92rem; font-weight: 400; color: var(--soft); }
.chip { display: inline-block; margin: .1rem .9rem .1rem 0; font-size: .92rem; white-space: nowrap; }
.chip i { font-style: normal; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
summary { cursor: pointer; color: var(--accent); margin: .6rem 0; } details pre { max-height: 32rem; }
@media (max-width: 44rem) {
  body { padding: 1.5rem .9rem 3rem; } h1 { font-size: 1.5rem; } .card { padding: .9rem; border-radius: 10px; }
  .take { grid-template-columns: minmax(0, 1fr); } .take video { max-width: 24rem; }
  .picture img, .picture svg { height: 7rem; }
  table, tbody, tr, td, td.name { display: block; width: auto; } thead { display: none; }
  tr { border-top: 1px solid var(--line); padding: .6rem 0; } td { border: 0; padding: .1rem 0; }
  dl { grid-template-columns: minmax(0, 1fr); } dd { margin-bottom: .4rem; }
}
@media print { .card { break-inside: avoid; } }
"""

# One clip plays at a time, a line runs over its spectrogram, and a click there moves the clip.
SCRIPT = """
(() => {
  const media = [...document.querySelectorAll('video, audio')];
  for (const player of media) {
    const picture = player.closest('.take').querySelector('.picture');
    if (!picture) continue;
    const head = picture.querySelector('.head'), seconds = Number(picture.dataset.seconds);
    const start = Number(picture.dataset.start);
    const draw = () => {
      const x = `${100 * (player.currentTime - start) / seconds}%`;
      head.setAttribute('x1', x); head.setAttribute('x2', x); head.style.visibility = 'visible';
      if (!player.paused) requestAnimationFrame(draw);
    };
    player.addEventListener('play', draw);
    player.addEventListener('seeked', draw);
    picture.addEventListener('click', event => {
      const box = picture.getBoundingClientRect();
      player.currentTime = start + seconds * (event.clientX - box.left) / box.width;
    });
  }
  for (const player of media) player.addEventListener('play', () => media.forEach(m => m === player || m.pause()));
})();
"""


def policy() -> str:
    """Content security policy: own pictures and media, this style sheet and this script, nothing from anywhere else."""
    return ("default-src 'none'; img-src 'self' data:; media-src 'self'; base-uri 'none'; form-action 'none'; "
            f"style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'")


def _hash(text: str) -> str:
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
