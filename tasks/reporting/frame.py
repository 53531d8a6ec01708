"""The frame of a report: one file without scripts that fetches nothing, with a content security policy."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tasks.reporting.templates import HERE, digest_source, inlined, templates_of

POLICY = "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"


def assemble_page(
    kind: str,
    name: str,
    subtitle: str,
    figures: Mapping[str, str],
    warnings: Sequence[str],
    sections: Sequence[tuple[str, str, str]],
) -> str:
    """Return a whole page as HTML text.

    Args:
        kind: such as `Dataset report`.
        subtitle: HTML.
        warnings: lines of text in a box of their own.
        sections: id, title and HTML of each.
    """
    style = inlined(HERE, "page.css")
    return (
        templates_of(HERE)
        .get_template("frame.html")
        .render(
            policy=f"{POLICY}; style-src {digest_source(style)}",
            style=style,
            kind=kind,
            name=name,
            subtitle=Markup(subtitle),
            figures=figures,
            warnings=warnings,
            sections=[(label, title, Markup(body)) for label, title, body in sections],
        )
    )
