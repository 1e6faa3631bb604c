"""Words translated by a chat model behind a real local HTTP server that also fails, and by a tiny encoder-decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, chat_server

from megalign.endpoint import Cache, Client, Endpoint
from megalign.errors import ConfigError, DataError
from megalign.prealign.build import TableOptions, build_table
from megalign.prealign.word_translator import ChatWordTranslator, ModelWordTranslator, open_word_translator
from megalign.translation.languages import Language, is_written_in, language_of
from megalign.translation.options import TranslatorOptions

DE, ZH = language_of("de"), language_of("zh")


def german(words: Sequence[str]) -> str:
    return json.dumps({word: [f"{word}-eins", f"{word}-zwei"] for word in words})


def asked_for(body: dict[str, Any]) -> list[str]:
    words: list[str] = json.loads(body["messages"][1]["content"])
    return words


def translator(url: str, cache: Path, *, timeout_seconds: float = 60.0, **settings: Any) -> ChatWordTranslator:
    client = Client(
        Endpoint(url, "model"),
        backoff_seconds=0.01,
        timeout_seconds=timeout_seconds,
        requests_per_minute=1e6,
        num_attempts=3,
    )
    return ChatWordTranslator(client, Cache(cache), language_of("en"), **settings)


def test_words_are_asked_for_together_and_once(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(7)]
    failures: dict[str, str] = {}
    with chat_server(lambda body, _: Reply(german(asked_for(body)))) as server:
        first = translator(server.url, tmp_path / "c", words_per_question=3)
        found = first.translate(words, DE, failures.__setitem__)
        again = translator(server.url, tmp_path / "c", words_per_question=3).translate(words, DE, failures.__setitem__)
    assert found == again == {word: (f"{word}-eins", f"{word}-zwei") for word in words}
    assert sorted(map(len, map(asked_for, server.requests))) == [1, 3, 3]
    assert failures == {}
    assert first.source == "endpoint:model"
    system = server.requests[0]["messages"][0]["content"]
    assert "from English into German" in system
    assert "its 5 most common German translations" in system


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500),
        Reply(body=b"<html>busy</html>"),
        Reply(text='{"bank": ["Ufer"'),
        Reply(text="Sure! bank is Ufer."),
        Reply(text='{"bench": ["Bank"]}'),
        Reply(text='{"bank": ["Ufer"], "more": ["x"]}'),
        Reply(text='{"bank": "Ufer"}'),
        Reply(text='{"bank": [1]}'),
        Reply(text='{"bank": []}'),
        Reply(text='{"bank": ["a", "b", "c", "d", "e", "f"]}'),
        Reply(text='{"bank": ["Ufer", " "]}'),
        Reply(text='{"bank": ["Ufer", "银行"]}'),
        Reply(text='{"bank": ["a word that goes on and on"]}'),
        Reply(text='{"bank": ["' + "x" * 61 + '"]}'),
        Reply(text='{"bank": ["Uf', finish_reason="length"),
        Reply(text='{"bank": ["spät"]}', delay_seconds=8.0),
    ],
    ids=lambda reply: f"{reply.status} {reply.text or reply.body!r:.32}",
)
def test_a_bad_answer_is_asked_for_again(bad: Reply, tmp_path: Path) -> None:
    failures: dict[str, str] = {}
    good = Reply('```json\n{"bank": ["Ufer", "die  Bank", "Ufer"]}\n```')
    with chat_server(lambda _, before: bad if before == 0 else good) as server:
        words = translator(server.url, tmp_path / "c", timeout_seconds=5.0 if bad.delay_seconds else 60.0)
        found = words.translate(["bank"], DE, failures.__setitem__)
    assert found == {"bank": ("Ufer", "die Bank")}
    assert len(server.requests) == 2
    assert failures == {}


def test_words_of_a_bad_question_are_asked_one_by_one_and_lies_counted(tmp_path: Path) -> None:
    """A word the model never answers well takes neither its neighbours' translations nor gets English filled in."""

    def answer(body: dict[str, Any], _: int) -> Reply:
        words = asked_for(body)
        return Reply("I do not know." if "xyzzy" in words else german(words))

    failures: dict[str, str] = {}
    words = ["one", "xyzzy", "two", "three"]
    with chat_server(answer) as server:
        found = translator(server.url, tmp_path / "c", words_per_question=2).translate(words, DE, failures.__setitem__)
    assert list(found) == ["one", "two", "three"]
    assert failures == {"xyzzy": "the answer is not JSON (Expecting value at character 0) (after 3 attempts)"}
    # [one, xyzzy] three times, [two, three] once; then one, and xyzzy three times.
    assert len(server.requests) == 3 + 1 + 1 + 3


def test_a_stopped_run_continues_from_the_cache(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        return Reply(german(asked_for(body))) if "c" not in asked_for(body) else Reply(status=400)

    cache = tmp_path / "c"
    with chat_server(answer) as server:
        asking = translator(server.url, cache, words_per_question=1)
        asking.client.num_parallel = 1
        with pytest.raises(DataError, match="answered 400"):
            asking.translate(["a", "b", "c", "d"], DE, lambda *_: None)
    with chat_server(lambda body, _: Reply(german(asked_for(body)))) as server:
        found = translator(server.url, cache, words_per_question=1).translate(["a", "b", "c", "d"], DE, print)
    assert list(found) == ["a", "b", "c", "d"]
    assert sorted(map(asked_for, server.requests)) == [["c"], ["d"]]


def test_requests_keep_their_rate(tmp_path: Path) -> None:
    with chat_server(lambda body, _: Reply(german(asked_for(body)))) as server:
        asking = translator(server.url, tmp_path / "c", words_per_question=1)
        asking.client.requests_per_minute = 1200.0
        asking.translate([f"w{number}" for number in range(6)], DE, lambda *_: None)
    # Six requests at 50 ms; a request may be late, never early.
    assert max(server.times) - min(server.times) > 0.2


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    with (
        chat_server(lambda *_: Reply("no")) as server,
        pytest.raises(DataError, match=r"3 questions failed; .*What was answered is cached"),
    ):
        translator(server.url, tmp_path / "c", max_failures=2).translate(list("abcdef"), DE, lambda *_: None)


def test_a_table_asks_for_what_the_dictionaries_lack(tmp_path: Path) -> None:
    (tmp_path / "en-de.txt").write_text("bank bank\nbank ufer\n")
    counts = {"bank": 70, "Bank": 30, "River": 60, "river": 40, "sea": 25, "rare": 20, "1984": 500, "gone": 24}

    def answer(body: dict[str, Any], _: int) -> Reply:
        texts = {word: [] if word == "gone" else [f"{word} {n}" for n in "ab"] for word in asked_for(body)}
        return Reply(json.dumps(texts))

    said: list[str] = []
    with chat_server(answer) as server:
        table = build_table(
            TableOptions(
                counts, dictionaries={"de": tmp_path / "en-de.txt"}, translated_languages=["de", "fr"], max_words=3
            ),
            translator(server.url, tmp_path / "c", words_per_question=5),
            said.append,
        )
    rows = [(r["word"], r["language"], r["translation"], r["rank"], r["source"], r["frequency"]) for r in table.rows()]
    assert rows == [
        ("River", "de", "River a", 0, "endpoint:model", 100),
        ("River", "de", "River b", 1, "endpoint:model", 100),
        ("River", "fr", "River a", 0, "endpoint:model", 100),
        ("River", "fr", "River b", 1, "endpoint:model", 100),
        ("bank", "de", "bank", 0, "muse", 100),
        ("bank", "de", "ufer", 1, "muse", 100),
        ("bank", "fr", "bank a", 0, "endpoint:model", 100),
        ("bank", "fr", "bank b", 1, "endpoint:model", 100),
        ("sea", "de", "sea a", 0, "endpoint:model", 25),
        ("sea", "de", "sea b", 1, "endpoint:model", 25),
        ("sea", "fr", "sea a", 0, "endpoint:model", 25),
        ("sea", "fr", "sea b", 1, "endpoint:model", 25),
    ]
    assert {word for body in server.requests for word in asked_for(body)} == {"River", "bank", "sea", "gone"}
    assert said == [
        "dictionaries (de): 1 words, 2 translations, 2 lines",
        "de: 'gone' was not translated: the answer for 'gone' has 0 translations, not 1 to 5 (after 3 attempts)",
        "de: 2 words, 4 translations, 3 words asked, 1 words failed",
        "fr: 3 words, 6 translations, 3 words asked",
    ]
    assert table.build_counts["words_failed"] == 1


class Beams:
    """Translations that stand in a list."""

    name = "models/beams"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def choices(self, texts: Sequence[str], target: Language, num_choices: int) -> list[list[str]]:
        self.seen += texts
        known = {"bank": ["银行", "bank", "banks", " 银行 "], "river": [], "sea": ["sea level"]}
        return [known[text] for text in texts]


def test_an_encoder_decoder_s_beams_are_checked_and_cached(tmp_path: Path) -> None:
    model, failures = Beams(), dict[str, str]()
    asking = ModelWordTranslator(model, Cache(tmp_path / "c"))
    found = asking.translate(["bank", "river", "sea"], ZH, failures.__setitem__)
    assert found == {"bank": ("银行", "bank")}
    assert failures == {
        "river": "the model gave no translation that ends",
        "sea": "'sea level' is not written in Han script",
    }
    assert asking.source == "hf:beams"
    again = Beams()
    assert ModelWordTranslator(again, Cache(tmp_path / "c")).translate(["bank"], ZH, print) == found
    assert again.seen == []


def test_a_real_encoder_decoder_gives_its_beams(tmp_path: Path) -> None:
    """A tiny M2M-100 with random weights: nonsense, but generate's own beams in their order, without repetitions."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from encoder_decoder import save_encoder_decoder

    model, tokenizer = save_encoder_decoder(tmp_path / "model")
    opened = open_word_translator(TranslatorOptions(f"hf:{tmp_path / 'model'}"), tmp_path / "c", "en", 3)
    assert isinstance(opened, ModelWordTranslator)
    opened.model.max_new_tokens = 8  # type: ignore[attr-defined]
    words = ["frog", "sky", "pond"]
    given = opened.model.choices(words, language_of("es"), 3)
    some = 0
    for word, texts in zip(words, given, strict=True):
        ids = model.generate(
            torch.tensor([tokenizer(word)["input_ids"]]), max_new_tokens=8, num_beams=3, num_return_sequences=3,
            do_sample=False, forced_bos_token_id=tokenizer.convert_tokens_to_ids("__es__"),
        )  # fmt: skip
        ended = [row for row in ids.tolist() if 2 in row[1:]]
        expected = list(dict.fromkeys(filter(None, (tokenizer.decode(row, skip_special_tokens=True) for row in ended))))
        assert texts == expected
        some += len(texts)
    assert some > 0
    assert set(opened.translate(words, language_of("es"), lambda *_: None)) <= set(words)


def test_what_cannot_translate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Encoder-decoders are set up to translate from English"):
        _from_german(tmp_path)
    with pytest.raises(ConfigError, match="No translator is named"):
        open_word_translator(TranslatorOptions(""), tmp_path / "c")
    with pytest.raises(ConfigError, match="There is no language 'xx'"):
        open_word_translator(TranslatorOptions(""), tmp_path / "c", "xx")
    with pytest.raises(ConfigError, match="There is no model to translate with"):
        build_table(TableOptions({"bank": 50}, translated_languages=["de"]))
    with pytest.raises(ConfigError, match="A question has 0 words and 5 translations"):
        translator("http://127.0.0.1:9/v1", tmp_path / "c", words_per_question=0)


def _from_german(folder: Path) -> None:
    pytest.importorskip("transformers")
    from encoder_decoder import save_encoder_decoder

    save_encoder_decoder(folder / "model")
    open_word_translator(TranslatorOptions(f"hf:{folder / 'model'}"), folder / "c", "de")


def test_scripts_of_terms() -> None:
    assert is_written_in("T恤", ZH)
    assert is_written_in("1984", ZH)
    assert not is_written_in("T-shirt", ZH)
    assert is_written_in("Ufer", DE)
    assert not is_written_in("банк", DE)


def test_an_endpoint_that_is_down_ends_the_run(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(500)]
    with chat_server(lambda body, _: Reply(status=500)) as server:
        asked = translator(server.url, tmp_path / "c", words_per_question=1)
        with pytest.raises(DataError, match=r"gave no answer to 20 questions in a row: the server answered 500"):
            asked.translate(words, DE, lambda *_: None)
        assert len(server.requests) < 200
    # Answers that are no good are those of an endpoint that works.
    failures: dict[str, str] = {}
    with chat_server(lambda body, _: Reply(text="I cannot.")) as server:
        assert translator(server.url, tmp_path / "d").translate(words[:60], DE, failures.__setitem__) == {}
    assert len(failures) == 60
