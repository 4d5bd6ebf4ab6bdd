"""What a page does in headless Chromium: script errors, missing pictures, sideways scrolling."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A window of Chromium is at least 500 pixels wide; a frame may have a phone's width.
SCRIPT = """
<pre id="problems"></pre>
<script>
const problems = [];
let open = 0;
function examine(frame, path, width) {
  const page = frame.contentDocument;
  const problem = text => problems.push(`${path} at ${width} pixels: ${text}`);
  frame.errors.forEach(problem);
  const wide = page.documentElement.scrollWidth;
  if (wide > width) problem(`scrolls sideways, ${wide} pixels wide`);
  for (const image of page.images)
    if (image.complete && !image.naturalWidth) problem(`picture ${image.getAttribute("src").slice(0, 80)} is missing`);
  if (--open === 0) document.getElementById("problems").textContent = "DONE" + JSON.stringify(problems);
}
function show(path, width) {
  open += 1;
  const frame = document.createElement("iframe");
  frame.errors = [];
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  document.body.append(frame);
  fetch(path).then(answer => answer.text()).then(text => {
    // Errors of the page's own scripts are noted by a script in front of all others.
    const watch = "<script>onerror = text => { frameElement.errors.push(text) }<" + "/script>";
    frame.onload = () => setTimeout(() => examine(frame, path, width), 300);  // not of the empty page before
    frame.srcdoc = text.replace(/<head[^>]*>/i, head => `${head}<base href="${path}">${watch}`);
  });
}
</script>
"""


def problems(folder: Path, pages: list[str], widths: tuple[int, ...] = (390, 1280), dark: bool = False) -> list[str]:
    """Open pages of a folder in frames of some widths; a sentence for each thing that is wrong."""
    assert CHROMIUM is not None
    calls = "".join(f"show({json.dumps(page)}, {width});" for page in pages for width in widths)
    frames = folder / "frames.html"
    frames.write_text(f"<!doctype html><body>{SCRIPT}<script>{calls}</script></body>", encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        words += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        words += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom", frames.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    listed = re.search(r"DONE(\[.*?\])</pre>", done.stdout, re.DOTALL)
    assert listed is not None, f"Chromium did not open {pages}: {done.stderr[-500:]}"
    return json.loads(html.unescape(listed[1]))
