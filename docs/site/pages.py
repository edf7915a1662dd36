"""mkdocs hook: the source of the reference, the pages outside docs/, and the links that lead out of docs/.

Pages are written for GitHub, where links are relative to the file. README.md, CONTRIBUTING.md and
CHANGELOG.md become pages of the site; any other file that a page links to is copied to `files/`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "build" / "reference" / "slimdeploy"
DOCUMENTED = ("toolchain", "calibrate")
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Page in the repository -> page of the site."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the documented source to where mkdocs.yml looks for it: mkdocstrings reads everything in a
    package's folder, and that of the checkout holds virtual environments.
    """
    shutil.rmtree(SOURCE, ignore_errors=True)
    for folder in DOCUMENTED:
        shutil.copytree(ROOT / folder, SOURCE / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", SOURCE)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/ and the files that any page links to."""
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    linked = {
        target
        for page in files.documentation_pages()
        for link in LINK.findall(page.content_string)
        if (target := _target(page.src_uri, link)) not in OUTSIDE and not target.startswith("docs/")
    }
    for target in sorted(linked):
        if (ROOT / target).is_file():  # mkdocs itself warns of a link to nothing
            files.append(File.generated(config, _in_site(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site."""
    uri = page.file.src_uri
    folder = str(PurePosixPath(uri).parent)
    return LINK.sub(lambda link: relpath(_in_site(_target(uri, link[1])), folder), markdown)


def _target(uri: str, link: str) -> str:
    """The file in the repository that `link` in the page `uri` means."""
    source = next((outside for outside, inside in OUTSIDE.items() if inside == uri), f"docs/{uri}")
    return normpath(PurePosixPath(source).parent / link)


def _in_site(target: str) -> str:
    """Where a file of the repository is in the site."""
    if target in OUTSIDE:
        return OUTSIDE[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}"
