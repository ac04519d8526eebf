"""What well-known tokens look like: a table of rules, each written from what its issuer says of the format.

text --rule's literals are in it?--> rule's pattern --> the part of the match that is the secret

Each rule has an example in tests/task_logger/test_redaction.py, and a row in docs/evidence.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_SECRET_CHARACTERS = 32 << 10
"""Nothing that a rule finds is longer: text in pieces is searched with this much overlap."""

_URL_USER = rb"/(?<=://)[^\s/@]{1,400}@"
"""In bytes: a URL with something before an @. The two slashes alone would be in too many lines."""


class Rule(NamedTuple):
    """One kind of token: `literals` one of which is in every match, and the `pattern` of the whole.

    Where the pattern has a group, that is the secret, else all of it is. `filter` is what the pre-filter
    looks for in place of the literals, `None` for them. (`re` compiles a pattern when it is first needed, and
    keeps it: all of them would take 20 ms at the start.)
    """

    name: str
    literals: tuple[str, ...]
    pattern: str
    filter: bytes | None = None


def _rule(name: str, literals: tuple[str, ...], pattern: str, filter_: bytes | None = None) -> Rule:
    return Rule(name=name, literals=literals, pattern=pattern, filter=filter_)


_COLOUR = r"\x1b\[[0-9;]{0,20}m"

_ESCAPES = (
    r"\\[0abefnrtv]", r"\\x[0-9A-Fa-f]{2}", r"\\u[0-9A-Fa-f]{4}",  # `repr` and JSON
    r"[%=][0-9A-Fa-f]{2}",  # URLs and mail
    r"\[m", r"[;\[][0-9]m", r"[;\[][0-9]{2}m", ";[0-9]{3}m",  # a terminal's colours
)  # fmt: skip
"""What ends in a letter or digit that is no part of the word behind it."""


def _start(first: str, part_of_word: str = "A-Za-z0-9") -> str:
    """A token's first characters where nothing but an escape stands right before them.

    They come first, and then the look back: so `re` skips to where they are.
    """
    escaped = "".join(f"|(?<={escape}{first})" for escape in _ESCAPES)
    return f"{first}(?:(?<![{part_of_word}]{first}){escaped})"


def _token(name: str, prefix: str, rest: str, literals: tuple[str, ...]) -> Rule:
    """A token that nothing else looks like: it may be printed right behind a word, but not before one."""
    return _rule(name, literals, rf"{prefix}{rest}(?![A-Za-z0-9])")


_BETWEEN_LINES = (
    r"""(?:[\s"',()+>|#*]|\\+[nrt]?|[bruf]["']"""
    rf"""|<br ?/?>|-{{0,4}}[>\s]|[0-9]{{1,6}}[:\s|]|{_COLOUR}){{0,60}}+"""
)
"""Between two lines of a key: line ends, raw or escaped, what source code puts around its lines, and what
pages, `cat -n`, `grep -n` and tracebacks put before them."""

_BETWEEN_LINES_BACKWARDS = (
    r"""(?:[\s"',()+>|#*]|["'][bruf](?=[\s,(+])|[nrt]?\\+"""
    r"""|>/? ?rb<|[:\s|][0-9]{1,6}(?=\s)|m[0-9;]{0,20}\[\x1b){0,60}+"""
)

_KEY_KIND = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?"

_PRIVATE_KEY = (
    rf"-----BEGIN {_KEY_KIND}-----"
    rf"(?:(?:[^-]|-(?!----)){{0,{MAX_SECRET_CHARACTERS - 200}}}+-----END {_KEY_KIND}-----"
    rf"|(?:{_BETWEEN_LINES}[A-Za-z0-9+/=]{{16,}}+)++)"
)
"""From its first line to its last; without a last one, to the end of what looks like a key."""

_MIXED = r"(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*[0-9])"
_AWS_SECRET = _start("", "A-Za-z0-9+/") + r"[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=])"


RULES: tuple[Rule, ...] = (
    _rule("private_key", ("PRIVATE KEY",), _PRIVATE_KEY),
    _token("aws_access_key_id", _start("A[KS]IA"), "[A-Z0-9]{16}", ("AKIA", "ASIA")),
    _rule(
        "aws_secret_key",
        ("AKIA", "ASIA"),  # within a few words of its access key id
        rf"(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Z0-9])[\s\S]{{0,100}}?((?={_AWS_SECRET}){_MIXED}[A-Za-z0-9+/]{{40}})",
    ),
    _rule(
        "aws_secret_key",
        ("ecret_access_key", "ecretAccessKey", "ECRET_ACCESS_KEY", "aws_secret", "AWS_SECRET"),
        rf"(?i:secret_?access_?key|aws_secret(?:_key)?)(?:[\"'\\\]\s:=>,(]|[bruf][\"']|{_COLOUR}){{1,40}}({_AWS_SECRET})",
    ),
    _token("github_token", "gh[pousr]_", "[A-Za-z0-9]{36,255}", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    _token("github_token", "github_pat_", "[A-Za-z0-9_]{50,255}", ("github_pat_",)),
    _token(
        "gitlab_token",
        "gl(?:pat|ptt|dt|rt|soat|cbt)-",
        "[A-Za-z0-9_-]{20,300}",
        ("glpat-", "glptt-", "gldt-", "glrt-", "glsoat-", "glcbt-"),
    ),
    _rule(
        "sk_key",
        ("sk-",),  # OpenAI, Anthropic, DeepSeek, OpenRouter; a name of words has no such run with digits
        _start("sk-", "A-Za-z0-9_-")
        + r"(?=[A-Za-z0-9_-]*[A-Za-z0-9]{12})(?=(?:[A-Za-z_-]*[0-9]){2})[A-Za-z0-9_-]{20,400}",
    ),
    _token("stripe_key", _start("[sr]k_") + "(?:live|test)_", "[A-Za-z0-9]{16,255}", ("k_live_", "k_test_")),
    _rule("slack_token", ("xox", "xapp-"), _start("x") + r"(?:ox[abceoprs]|app)-[A-Za-z0-9-]{10,255}"),
    _rule(
        "slack_webhook",
        ("hooks.slack.com/",),
        r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,255})",
    ),
    _rule("google_key", ("AIza",), _start("AIza", "A-Za-z0-9_-") + r"[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _rule("google_oauth", ("ya29.",), _start(r"ya29\.") + r"[A-Za-z0-9_-]{20,1000}"),
    _token("huggingface_token", "hf_", "[A-Za-z0-9]{30,255}", ("hf_",)),
    _token("npm_token", "npm_", "[A-Za-z0-9]{36}", ("npm_",)),
    _rule("pypi_token", ("pypi-AgE",), r"pypi-AgE[A-Za-z0-9_-]{50,1000}"),
    _rule("sendgrid_key", ("SG.",), _start(r"SG\.") + r"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    _token("groq_key", "gsk_", "[A-Za-z0-9]{40,255}", ("gsk_",)),
    _token("digitalocean_token", "do[opr]_v1_", "[a-f0-9]{64}", ("_v1_",)),
    _rule("age_key", ("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[A-Z0-9]{40,80}"),
    _rule(
        "azure_key",
        ("AccountKey=", "SharedAccessKey="),
        r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{40,120}={0,2})",
    ),
    _rule(
        "jwt",
        ("eyJ",),  # header and payload are JSON objects in base64url; the encrypted kind has five parts
        _start("eyJ", "A-Za-z0-9_-")
        + r"[A-Za-z0-9_-]{8,8000}\.(?:eyJ[A-Za-z0-9_-]{4,16000}\.[A-Za-z0-9_-]{0,2000}"
        r"|[A-Za-z0-9_-]{0,2000}(?:\.[A-Za-z0-9_-]{8,8000}){3})",
    ),
    _rule(
        "bearer_token",
        ("Bearer ", "bearer ", "BEARER "),
        r"(?i:bearer)\s{1,4}(?=[A-Za-z_~.+/-]*[0-9])([A-Za-z0-9._~+/-]{16,4000}={0,3})",
    ),
    _rule(
        "authorization",
        ("uthorization", "UTHORIZATION"),
        rf"(?i:authorization)(?:[\"'\\\]\s]|{_COLOUR}){{0,8}}[:=,](?:\s|{_COLOUR}){{0,6}}"
        rf"[bruf]{{0,2}}(?:[\"'\\]|{_COLOUR}){{0,4}}"
        r"(?i:bearer|basic|token|apikey)\s{1,4}([A-Za-z0-9._~+/:-]{8,4000}={0,3})",
    ),
    _rule(
        "url_password",
        ("://",),  # RFC 3986, userinfo; `user:{password}@` and the like are no passwords
        r"[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s/?#:@\"'<>\\]{0,200}:"
        r"(?![{$%<*]|(?:password|passwd|pass|pwd|secret|xxx+)@)([^\s/?\"'<>⟨⟩]{3,256})@",
        filter_=_URL_USER,
    ),
)
"""Every rule that is on by default."""

_END_OF_KEY = rf"-----END {_KEY_KIND}-----"
_LINES_BEFORE = (
    rf"{_BETWEEN_LINES_BACKWARDS}[A-Za-z0-9+/=]{{0,80}}+"
    rf"(?:{_BETWEEN_LINES_BACKWARDS}[A-Za-z0-9+/=]{{16,}}+)++"
)
"""For text that is turned round, so that the search is linear."""


def find_by_rules(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and rule name of every token in a text, in no order; some may overlap."""
    found = []
    for rule in RULES:
        if any(literal in text for literal in rule.literals):
            pattern = re.compile(rule.pattern, re.ASCII)
            group = 1 if pattern.groups else 0
            found += [(*match.span(group), rule.name) for match in pattern.finditer(text)]
    if "PRIVATE KEY" in text:
        found += _ends_of_keys(text)
    return found


def _ends_of_keys(text: str) -> list[tuple[int, int, str]]:
    """The lines of keys whose first line isn't there: `tail key.pem`."""
    found = []
    for match in re.finditer(_END_OF_KEY, text):
        before = text[max(0, match.start() - MAX_SECRET_CHARACTERS // 2) : match.start()]
        lines = re.match(_LINES_BEFORE, before[::-1])
        if lines is not None:
            found.append((match.start() - lines.end(), match.end(), "private_key"))
    return found
