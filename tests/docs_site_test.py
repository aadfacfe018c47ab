"""The documentation as a site: it builds without a warning and asks nothing of other machines."""

import html.parser
import importlib.util
import pathlib
import re
import subprocess
import sys
import urllib.parse

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]
NEEDED = ("latex2mathml", "material", "mkdocs", "mkdocs_jupyter", "mkdocstrings")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
LOADED = {"src", "href", "data", "poster", "srcset"}  # attributes whose target a browser loads


class Page(html.parser.HTMLParser):
    """What a page loads and links to, and its tags."""

    def __init__(self):
        super().__init__()
        self.loads, self.links, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        found = [value for name, value in attrs if name in LOADED and value]
        (self.links if tag == "a" else self.loads).extend(found)


def page(path: pathlib.Path) -> Page:
    parsed = Page()
    parsed.feed(path.read_text())
    return parsed


@absltest.skipIf(MISSING, f"no {', '.join(MISSING)} here: pip install -e '.[docs]'")
class DocsSiteTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.site = pathlib.Path(absltest.get_default_test_tmpdir()) / "gradmem_jax_site"
        words = ["mkdocs", "build", "-q", "--strict", "-f", "docs/site/mkdocs.yml", "-d", cls.site]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_nothing_is_loaded_from_elsewhere(self):
        for path in self.site.rglob("*.html"):
            self.assertNotRegex(path.read_text(), r"import\(\s*['\"]https?:", path)
            for target in page(path).loads:
                self.assertNotRegex(target, r"^(\w+:)?//", f"{path} loads {target}")
        for path in self.site.rglob("*.css"):
            self.assertNotRegex(path.read_text(), r"(@import|url\()\s*['\"]?(https?:)?//", path)

    def test_pictures_and_links_are_there(self):
        for path in self.site.rglob("*.html"):
            parsed = page(path)
            for target in parsed.loads + parsed.links if path.name != "404.html" else []:
                if not re.match(r"(https?|data|mailto):|#|\.$", target):
                    file = path.parent / urllib.parse.unquote(target.split("?")[0].split("#")[0])
                    self.assertTrue(file.exists(), f"{path} leads to {target}")

    def test_readme_is_home(self):
        text = (self.site / "index.html").read_text()
        self.assertIn("GradMem in JAX: a language model", text)
        self.assertIn('src="gradmem.png"', text)
        self.assertIn('href="source/experiments/models/babi_qa2.html"', text)
        self.assertIn('href="results.html"', text)
        self.assertContainsSubset({"math", "mfrac"}, page(self.site / "index.html").tags)
        self.assertNotIn(r"\frac", text)
        self.assertIn("pip install", (self.site / "quick_start.html").read_text())

    def test_every_page_is_there(self):
        for source in (ROOT / "docs").glob("*.md"):
            self.assertTrue((self.site / f"{source.stem}.html").exists(), source)
        for notebook in (ROOT / "docs" / "tutorials").glob("*.ipynb"):
            self.assertTrue((self.site / f"tutorials/{notebook.stem}.html").exists(), notebook)
        menu = (self.site / "index.html").read_text()
        for path in self.site.rglob("*.html"):
            name = path.relative_to(self.site).as_posix()
            if not name.startswith("source/") and name not in ("404.html", "index.html"):
                self.assertIn(f'href="{name}"', menu)

    def test_entries_of_the_api_have_their_docstring(self):
        text = (self.site / "api/memory.html").read_text()
        self.assertIn('id="gradmem_jax.GradMem"', text)
        self.assertIn("int [B, S], padded on the right", text)  # shapes
        self.assertIn("&gt;&gt;&gt; ", text)  # examples


if __name__ == "__main__":
    absltest.main()
