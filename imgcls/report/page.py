"""What HTML pages of results are made of: one file each, with its style and its pictures inside."""

from __future__ import annotations

import base64
import html

from imgcls_infer.errors import printable

from imgcls.system.files import AnyPath, write_atomically


def write_page(path: AnyPath, title: str, style: str, body: str) -> None:
    """Write a page as UTF-8. title: plain text. style: CSS. body: HTML. Raises ImgclsError if it can't be written."""
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def escaped(text: str) -> str:
    """Text escaped for HTML, since names come from files and folders."""
    return html.escape(printable(text))


def data_uri(picture: bytes, kind: str = "png") -> str:
    """The address of a picture inside the page. picture: the content of a file. kind: `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
