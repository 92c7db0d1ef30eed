"""A page as a single HTML file, with all plots and pictures inside it as base64."""

import base64
import html
import io

STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}
td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}
figure{display:inline-block;margin:.5em;vertical-align:top;max-width:34em}"""


def page(title: str, parts) -> str:
    """A whole page; parts: its body, pieces of HTML."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
    )
    return "\n".join([head, f"<h1>{html.escape(title)}</h1>", *parts, "</body></html>\n"])


def escape(text) -> str:
    return html.escape(str(text))


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(head, rows) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in row)
    lines = [cells("th", head), *(cells("td", row) for row in rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def figure(plot) -> str:
    """plot: a matplotlib Figure."""
    out = io.BytesIO()
    plot.savefig(out, format="png", dpi=110)
    return image(out.getvalue())


def image(png: bytes, caption: str = "") -> str:
    data, words = base64.b64encode(png).decode(), html.escape(caption)
    below = f"<figcaption>{words}</figcaption>" if caption else ""
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}">{below}</figure>'
