"""What the site is besides the pages of docs/: home, quick start, sources, the rest of its menu.

- Home is README.md, the quick start some of its sections: one text, not two.
- A link to a file of the repository that is no page leads to a page with its source.
- A * in the menu stands for the pages that match it and that the menu does not name.
- Mathematics becomes MathML, which browsers show without a script.
"""

import fnmatch
import functools
import html
import pathlib
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
_QUICK_START = ("Install", "Ask a trained model", "Use the library", "Train")  # of README.md
_WITHOUT_MENU = "---\nhide: [navigation]\n---\n\n"
_PAGES = (".md", ".ipynb")
_SOURCES = (".py", ".cff", ".yml")  # of docs/; what else is there is on the site as it is
_FENCED = re.compile(r"(^ *(?:```|~~~).*?^ *(?:```|~~~)$)", re.M | re.S)
_LINK = re.compile(r"(\]\()(?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?\))")
_HREF = re.compile(r'(href=")(?![a-z]+:)([^"#]+)((?:#[^"]*)?")')
_MARKDOWN_CELL = re.compile(r'(<div class="[^"]*jp-RenderedMarkdown.*?</div>)', re.S)
_SCRIPT = re.compile(r"<script.*?</script>", re.S)
_LOADS = re.compile(r"<script[^>]* src=|MathJax|import\(")  # more scripts, from elsewhere
_CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>)", re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that docs/ does not have, and completes the menu."""
    readme = _WITHOUT_MENU + _outside_code(
        functools.partial(_LINK.sub, _from_docs), (ROOT / "README.md").read_text()
    )
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "quick_start.md", content=_quick_start(readme)))
    pages = [file for file in files.documentation_pages() if file.src_uri.endswith(_PAGES)]
    for path in sorted({path for page in pages for path in _sources(page)}):
        files.append(File.generated(config, f"source/{path}.md", content=_source_page(path)))
    config.nav = list(_filled(config.nav or [], pages))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Has links lead to pages of the site."""
    to_site = functools.partial(_to_site, page.file.src_uri)
    return _outside_code(functools.partial(_LINK.sub, to_site), markdown)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws mathematics, and has links of notebooks lead to pages of the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return re.sub(
            r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', _formula, text, flags=re.S
        )
    text = _SCRIPT.sub(lambda script: "" if _LOADS.search(script[0]) else script[0], text)
    text = _HREF.sub(functools.partial(_to_html, page.file.src_uri), text)
    parts = _MARKDOWN_CELL.split(text)
    parts[1::2] = ["".join(_draw_dollars(_CODE.split(part))) for part in parts[1::2]]
    return "".join(parts)


def _outside_code(change: Callable[[str], str], markdown: str) -> str:
    """Changes a page but for its blocks of code."""
    parts = _FENCED.split(markdown)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)


def _from_docs(link: re.Match[str]) -> str:
    """A link of README.md as it is from docs/."""
    return f"{link[1]}{posixpath.relpath(link[2], 'docs')}{link[3]}"


def _quick_start(readme: str) -> str:
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", readme, re.M | re.S))
    return f"{_WITHOUT_MENU}# Quick start\n\n" + "".join(
        f"## {name}\n{sections[name]}" for name in _QUICK_START
    )


def _place(page: str, link: str) -> str | None:
    """The path in the repository of what a page links to, if it is there."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _is_source(path: str | None) -> bool:
    """Whether a path of the repository is one that the site shows as source."""
    if path is None or path == "README.md":
        return False
    return not path.startswith("docs/") or path.endswith(_SOURCES)


def _target(page: str, link: str) -> str | None:
    """A link as the site has it, if it is one to the repository."""
    path = _place(page, link)
    if path is None:
        return None
    here = posixpath.dirname(page) or "."
    if path == "README.md":
        return posixpath.relpath("index.md", here)
    if _is_source(path):
        return posixpath.relpath(f"source/{path}.md", here)
    return posixpath.relpath(path, posixpath.normpath(posixpath.join("docs", here)))


def _to_site(page: str, link: re.Match[str]) -> str:
    return f"{link[1]}{_target(page, link[2]) or link[2]}{link[3]}"


def _to_html(page: str, link: re.Match[str]) -> str:
    target = _target(page, link[2])
    if target is None:
        return link[0]
    return f"{link[1]}{re.sub(r'[.](md|ipynb)$', '.html', target)}{link[3]}"


def _sources(page: File) -> Iterator[str]:
    """The files of the repository that a page links to and that are no pages."""
    for link in _LINK.finditer(_FENCED.sub("", page.content_string)):
        path = _place(page.src_uri, link[2])
        if path is not None and _is_source(path):
            yield path


def _source_page(path: str) -> str:
    """A file in its language, or the names in a folder."""
    title = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    place = ROOT / path
    if place.is_dir():
        names = sorted(one.name for one in place.iterdir() if one.name != "__pycache__")
        listed = title + "".join(f"- {name}\n" for name in names)
        if not (place / "README.md").exists():
            return listed
        path, place = f"{path}/README.md", place / "README.md"
        title = f"{listed}\n## README.md\n\n"
    fence, kind = "`" * 6, {".py": "python", ".json": "json", ".md": "markdown"}
    try:
        text = place.read_text()
    except UnicodeDecodeError as error:
        raise PluginError(
            f"a page links to {path}, which is no text; link to its folder"
        ) from error
    return f"{title}{fence}{kind.get(place.suffix, 'text')}\n{text}\n{fence}\n"


def _named(nav: Any) -> Iterator[str]:
    """All paths and patterns of a menu."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for item in nav.values():
            yield from _named(item)
    else:
        for item in nav:
            yield from _named(item)


def _filled(nav: list[Any], pages: list[File]) -> Iterator[Any]:
    """A menu whose patterns are replaced by pages; sections without a page are left out."""
    named = {*_named(nav)}
    free = [page.src_uri for page in pages if page.src_uri not in named]

    def fill(items: list[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, str) and "*" in item:
                yield from sorted(
                    (uri for uri in free if _matches(uri, item)),
                    key=lambda uri: (not uri.endswith(("/README.md", "/index.md")), uri),
                )
            elif isinstance(item, dict) and isinstance(section := next(iter(item.values())), list):
                if inside := list(fill(section)):
                    yield {next(iter(item)): inside}
            else:
                yield item

    return fill(nav)


def _matches(uri: str, pattern: str) -> bool:
    """Whether a page is in the pattern's folder itself and has such a name."""
    (folder, name), (its_folder, its_name) = posixpath.split(pattern), posixpath.split(uri)
    return folder == its_folder and fnmatch.fnmatch(its_name, name)


def _formula(found: re.Match[str]) -> str:
    return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")


def _draw_dollars(parts: list[str]) -> list[str]:
    """Text of a notebook, every second part code, with its $$..$$ and $..$ drawn."""

    def draw(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]), display="block" if found[1] == "$$" else "inline")

    parts[::2] = [
        re.sub(r"(\$\$?)(?=\S)(.+?)(?<=\S)\1", draw, part, flags=re.S) for part in parts[::2]
    ]
    return parts
