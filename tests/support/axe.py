"""What axe-core finds on a page, as WCAG 2.1 AA has it: each fault with the elements that have it."""

from importlib.resources import files

from playwright.sync_api import Page

SCRIPT = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")
RUN = """async (options) => {
    const said = (node) => `${node.target} ${node.failureSummary.slice(0, 250)}`;
    const found = await axe.run(document, options);
    return found.violations.map((v) => `${v.id}: ${v.help} ${JSON.stringify(v.nodes.slice(0, 3).map(said))}`);
}"""


def faults(page: Page, rules: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> list[str]:
    """Each fault in a line; none where the page is as it must be.

    Args:
        page: an open one.
        rules: by name; all of WCAG 2.1 AA and axe's best practice by default.
        without: rules to leave out, by name.
    """
    page.evaluate(SCRIPT)
    chosen = {"type": "rule", "values": list(rules)} if rules else {"type": "tag", "values": list(RULES)}
    disabled = {name: {"enabled": False} for name in without}
    # of what is right only counts: each element would be named, which takes its time
    return page.evaluate(RUN, {"runOnly": chosen, "rules": disabled, "resultTypes": ["violations"]})


def overflow(page: Page) -> int:
    """Pixels by which a page is wider than its window, 0 where it need not be moved sideways."""
    return max(0, int(page.evaluate("document.documentElement.scrollWidth - innerWidth")))
