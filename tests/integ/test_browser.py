"""The page of an XP in headless Chromium: it loads, plays and fetches nothing from elsewhere."""

import os
import shutil
import subprocess as sp
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEDIA = "[...document.querySelectorAll('video, audio')]"

pytestmark = pytest.mark.integ


def wait(page, expression, seconds=20.):
    """Until `expression` is true on the page (playwright's own wait evaluates text there, which the page forbids)."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f'never true on the page: {expression}'
        page.wait_for_timeout(50)


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    """The page of an XP with three clips, moved away from its XP, which is gone."""
    folder = tmp_path_factory.mktemp('browser')
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    sp.run([sys.executable, ROOT / 'tests' / 'pages' / 'fake_xp.py', folder / 'made'], check=True, env=env)
    shutil.move(folder / 'made' / 'xps' / '1a2b3c4d' / 'samples', folder / 'moved')
    shutil.rmtree(folder / 'made')
    return folder / 'moved' / 'index.html'


@pytest.fixture(scope='module')
def browser():
    sp.run(['sh', ROOT / 'tests' / 'integ' / 'setup.sh', 'chromium'], check=True)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=[
            '--no-sandbox', '--autoplay-policy=no-user-gesture-required'])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, page_file):
    """The open page; nothing may have gone wrong on it, nor been asked of another place, at the end of a test."""
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    wrong, requests = [], []
    page.on('console', lambda message: wrong.append(message.text) if message.type in ('error', 'warning') else None)
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('requestfailed', lambda request: wrong.append(f'{request.url}: {request.failure}'))
    page.on('request', lambda request: requests.append(request.url))
    page.wrong, page.requests = wrong, requests
    page.goto(page_file.as_uri())
    yield page
    page.close()
    assert not wrong
    assert requests and all(url.startswith(page_file.parent.as_uri()) for url in requests)


def test_all_sounds_videos_and_pictures_load(page):
    wait(page, f'{MEDIA}.every(m => m.readyState >= 2)')
    assert page.evaluate(f'{MEDIA}.map(m => m.error)') == [None] * 6
    assert all(abs(seconds - 2) < 0.2 for seconds in page.evaluate(f'{MEDIA}.map(m => m.duration)'))
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.videoWidth === 160)")
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    wait(page, '[...document.images].every(i => i.complete)')
    assert page.evaluate('[...document.images].map(i => i.naturalWidth > 300)') == [True] * 9


def test_playing_moves_the_line_and_stops_the_others(page):
    for name in ('audio', 'video'):
        page.evaluate(f"document.querySelector('{name}').play()")
        wait(page, f"document.querySelector('{name}').currentTime > 0.15")
        head = f"document.querySelector('{name}').closest('.take').querySelector('.head')"
        wait(page, f"parseFloat({head}.getAttribute('x1')) > 5")
    wait(page, "document.querySelector('audio').paused")


def test_a_click_on_a_spectrogram_goes_there(page):
    wait(page, f'{MEDIA}.every(m => m.readyState >= 2)')
    box = page.locator('.picture').first.bounding_box()
    page.mouse.click(box['x'] + 0.75 * box['width'], box['y'] + 20)
    wait(page, "Math.abs(document.querySelector('video').currentTime - 1.5) < 0.02")


def test_a_caption_cannot_run_a_script(page):
    assert page.title() == 'mmaudio/debug · 1a2b3c4d'
    assert '<script>document.title = "owned"</script>' in page.inner_text('body')


def test_even_injected_markup_reaches_nobody(page):
    page.evaluate("""() => {
        window.seen = [];
        document.addEventListener('securitypolicyviolation', event => seen.push(event.blockedURI));
        document.body.insertAdjacentHTML('beforeend', '<img src="http://127.0.0.1:9/x">');
        document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = "owned"'}));
    }""")
    wait(page, 'seen.length >= 2')
    assert page.title() == 'mmaudio/debug · 1a2b3c4d'
    page.wrong.clear()  # the browser says what it refused,
    page.requests[:] = page.requests[:1]  # and playwright lists it as asked for


@pytest.mark.parametrize('width', [320, 400, 768, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({'width': width, 'height': 800})
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_dark_follows_the_system(page):
    colours = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert colours == ['rgb(251, 251, 250)', 'rgb(19, 21, 24)']
