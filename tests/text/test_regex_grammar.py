"""Regular expressions and users' grammars, read into the EBNF that xgrammar keeps to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.text import char_ranges
from deepinfer.text.ebnf_grammar import make_ebnf_grammar
from deepinfer.text.grammar_tree import Chars, GrammarRefused, Repeat, fit_length, lengths
from deepinfer.text.regex_grammar import make_regex_grammar, parse_regex
from tests.text.grammar_walk import Grammar

CODES = st.integers(1, 0x10FFFF)
RANGES = st.lists(st.tuples(CODES, CODES).map(sorted).map(tuple), max_size=5).map(char_ranges.union)


@given(RANGES, CODES)
def test_a_set_or_its_negation_holds_every_character(ranges: char_ranges.Ranges, code: int) -> None:
    within = any(first <= code <= last for first, last in ranges)
    negated = char_ranges.negate(ranges)
    is_surrogate = 0xD800 <= code <= 0xDFFF
    assert any(first <= code <= last for first, last in negated) == (
        not within and not is_surrogate
    )


@given(CODES, CODES)
def test_written_runs_cover_a_range_and_keep_to_one_form_of_bytes(one: int, other: int) -> None:
    whole = char_ranges.common(((min(one, other), max(one, other)),), char_ranges.ANY)
    runs = [run for pair in whole for run in char_ranges._split_forms(*pair)]
    assert char_ranges.union(runs) == whole
    for first, last in runs:
        lowest, highest = chr(first).encode(), chr(last).encode()
        differ = [
            place
            for place, pair in enumerate(zip(lowest, highest, strict=True))
            if len({*pair}) > 1
        ]
        for place in range(differ[0] + 1 if differ else len(lowest), len(lowest)):
            assert (lowest[place], highest[place]) == (0x80, 0xBF)


@pytest.mark.parametrize(
    ("pattern", "grammar"),
    [
        ("ab", 'root ::= "a" "b"\n'),
        ("^a|b$", 'root ::= ("a" | "b")\n'),
        (r"\d{2,3}?", "root ::= (set0){2,3}\nset0 ::= [0-9]\n"),
        ("(?P<x>a)(?:b)+", 'root ::= "a" ("b"){1,}\n'),
        ("a{x}", 'root ::= "a" "{" "x" "}"\n'),
        ("[]a]", "root ::= set0\nset0 ::= [\\U0000005da]\n"),
        ("", 'root ::= ""\n'),
        ("a{0}", 'root ::= ""\n'),
    ],
)
def test_expression_is_written_as_rules(pattern: str, grammar: str) -> None:
    assert make_regex_grammar(pattern) == grammar


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("ab(?=c)", "look ahead or behind (at position 2)"),
        ("(?<!a)b", "look ahead or behind"),
        (r"(a)\1", "refer back to a group (at position 3)"),
        ("(?P<x>a)(?P=x)", "refer back"),
        ("(?i)a", "flags"),
        ("(?>a)", "atomic"),
        (r"a\b", "edge of a word"),
        (r"\p{L}", "Unicode"),
        (r"\q", "`\\q`"),
        ("a^b", "anchors"),
        ("(a$)", "anchors"),
        ("a++", "possessive"),
        ("a**", "count what is counted"),
        ("*", "nothing before `*`"),
        ("[z-a]", "range"),
        ("[[:alpha:]]", "POSIX"),
        ("[^\\x00-\\U0010ffff]", "no text can hold"),
        ("(a", "without `)`"),
        ("a)", "without a group"),
        ("[a", "without `]`"),
        ("a{3,2}", "below the lowest"),
        ("a{10001}", "10,000"),
        ("((a{1,1000}){1,1000})", "20,000"),
        ("(" * 70 + ")" * 70, "64 groups"),
    ],
)
def test_what_a_grammar_cannot_say_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(GrammarRefused) as refused:
        make_regex_grammar(pattern)
    assert words in refused.value.rule


@given(st.text(max_size=30))
def test_any_text_is_an_expression_or_is_refused(pattern: str) -> None:
    try:
        assert make_regex_grammar(pattern).startswith("root ::= ")
    except GrammarRefused as refused:
        assert refused.rule


def test_lengths_of_an_expression_are_known() -> None:
    assert lengths(parse_regex("a(b|cd){1,3}[e-f]?")) == (2, 8)
    assert lengths(parse_regex("a+")) == (1, None)


def test_length_is_met_by_counting_where_one_set_is_repeated() -> None:
    node = parse_regex("[a-z]+")
    assert fit_length(node, 2, 5) == Repeat(Chars(((97, 122),)), 2, 5)
    assert fit_length(parse_regex("ab+"), 0, 5) is None
    assert fit_length(parse_regex("a{2}"), 2, 2) == parse_regex("a{2}")


def test_grammar_is_written_with_names_of_its_own_and_sets_as_ranges() -> None:
    text = 'root ::= item* # all\nitem ::= ("\\n" | [^a]) "é"{2}\nunused ::= "x"'
    written = make_ebnf_grammar(text)
    assert written.startswith("root ::= own_root\nown_root ::= (own_item){0,}\n")
    assert "^" not in written and "unused" not in written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("root ::= root", "`root` no text of which comes to an end"),
        ('root ::= a\na ::= a "x"', "no text"),
        ('root ::= "(" root ")"', "comes to an end"),
        ('root ::= "a" b', "`root` that uses `b`, which is not defined"),
        ('a ::= "x"', "`root ::= ...`"),
        ('root ::= "a"\nroot ::= "b"', "second rule `root`"),
        ('start: "a"', "`name ::= ...`"),
        ('root ::= "a" |', '`""`'),
        ('root ::= "a', "closing"),
        ('root ::= "a" (= "b")', "look ahead"),
        ("root ::= TagDispatch()", "macros"),
        ("root ::= .", "`.`"),
        ('root ::= ("a"{1,1000}){1,1000}', "20,000"),
    ],
)
def test_grammar_without_texts_or_sense_is_refused(text: str, words: str) -> None:
    with pytest.raises(GrammarRefused) as refused:
        make_ebnf_grammar(text)
    assert words in refused.value.rule


def test_left_recursion_with_a_base_is_taken() -> None:
    assert make_ebnf_grammar('root ::= root "+" [0-9] | [0-9]')


def test_gbnf_is_taken_as_llama_cpp_writes_it() -> None:
    text = (
        "root ::= object ws\n"
        'object ::= "{" ws ( 1st ("," ws 1st)* )? "}"  # names may begin with a digit\n'
        '1st ::= "\\"" [^"\\\\\\x7F\\x00-\\x1F]{1,3} "\\"" ":" .\n'
        'ws ::= | " " | "\\n" [ \\t]{0,20}\n'
    )
    grammar = Grammar(make_ebnf_grammar(text, is_gbnf=True))
    assert grammar.has("{}") and grammar.has('{ "a":1, "b":]}\n\t')
    assert not grammar.has('{"abcd":1}') and not grammar.has("{}\t")
    with pytest.raises(GrammarRefused):
        make_ebnf_grammar(text)


@pytest.mark.parametrize(
    ("text", "takes", "refuses"),
    [
        pytest.param('root ::= "a" item("," item)*\nitem ::= "b"', "ab,b", "a", id="no macros"),
        pytest.param('root ::= "a" * "b" {2} # twice\n  "c" +', "aabbc", "abc", id="space"),
        pytest.param('root ::= "a"{ 1 , 2 } "b"{ 2 } [c]{ 1 , }', "aabbcc", "aaabbc", id="counts"),
        pytest.param('root ::= "a\nb"', "a\nb", "ab", id="line break in a literal"),
        pytest.param("root ::= [[:] [[.] [^[=]", "[.x", "a", id="no POSIX classes"),
        pytest.param('root ::= "a"\nroot ::= "b"', "b", "a", id="the last rule counts"),
        pytest.param("root ::= [a-] [-b] [^\n] .", "--a\n", "aa", id="dashes and dots"),
        pytest.param('root ::= "\\[\\]\\"\\x41\\u00e9"', '[]"Aé', "[]", id="escapes"),
        pytest.param('root ::= () "a" (| "b")', "a", "", id="nothing in a group"),
    ],
)
def test_gbnf_is_read_as_llama_cpp_reads_it(text: str, takes: str, refuses: str) -> None:
    grammar = Grammar(make_ebnf_grammar(text, is_gbnf=True))
    assert grammar.has(takes) and not grammar.has(refuses)


@pytest.mark.parametrize("text", ["root ::= []", "root ::= [^]", "root ::= []a]"])
def test_gbnf_with_a_class_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(GrammarRefused, match="class without any character"):
        make_ebnf_grammar(text, is_gbnf=True)


def test_braces_with_spaces_are_no_count_in_a_regular_expression() -> None:
    grammar = Grammar(make_regex_grammar("a{1, 2}"))
    assert grammar.has("a{1, 2}") and not grammar.has("aa")


@pytest.mark.parametrize("token", ["<[1000]>", "<think>", "!<think>"])
def test_gbnf_of_tokens_is_refused(token: str) -> None:
    with pytest.raises(GrammarRefused, match="tokens"):
        make_ebnf_grammar(f'root ::= "a" {token}', is_gbnf=True)


def test_large_counts_are_written_as_counts_of_counts() -> None:
    assert make_regex_grammar("[ab]{1,32}").startswith("root ::= (set0){1,32}\n")
    grammar = Grammar(make_regex_grammar("[ab]{40,1000}c"))
    assert all(grammar.has("a" * length + "c") for length in (40, 41, 500, 999, 1_000))
    assert not grammar.has("a" * 39 + "c") and not grammar.has("b" * 1_001 + "c")
    assert len(make_regex_grammar("[ab]{40,10000}")) < 4_000
    assert len(make_regex_grammar("(ab){40,10000}")) < 300
