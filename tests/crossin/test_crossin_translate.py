"""Translation of LUD: a chat model behind a real HTTP server that also lies, and an encoder-decoder made on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from crossin_samples import CHINESE_TASKS, ENGLISH_TASKS, SPANISH_TASKS, lines_of, task_rows, write_lines

from megalign.crossin.data.quality import apply_gate
from megalign.crossin.data.sources import Record, read_lud, read_source
from megalign.crossin.data.translate import ChatTranslator, LineTranslator, translate_lud
from megalign.crossin.translators import TranslatorOptions, open_translator, with_translations
from megalign.endpoint import Cache, Client, Endpoint
from megalign.errors import ConfigError, DataError
from megalign.translation.languages import language_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "endpoint"))

from chat_server import ChatServer, Reply, chat_server  # noqa: E402

WORDS = {
    "Spanish": dict(zip((t for row in ENGLISH_TASKS for t in row), (t for row in SPANISH_TASKS for t in row), strict=True)),
    "Chinese": dict(zip((t for row in ENGLISH_TASKS for t in row), (t for row in CHINESE_TASKS for t in row), strict=True)),
}  # fmt: skip


def translation(body: dict[str, Any]) -> dict[str, str]:
    """What an honest model says."""
    system, asked = (one["content"] for one in body["messages"])
    words = next(words for name, words in WORDS.items() if f"into {name}" in system)
    texts = json.loads(asked)
    head, _, instruction = texts["instruction"].partition(": ")
    return {
        "instruction": f"{head}: {words[instruction]}",
        "input": words[texts["input"]],
        "output": words[texts["output"]],
    }


def honest(body: dict[str, Any], _: int) -> Reply:
    return Reply(json.dumps(translation(body), ensure_ascii=False))


def client(server: ChatServer, **settings: Any) -> Client:
    return Client(Endpoint(server.url, "model"), **{"backoff_seconds": 0.01, "requests_per_minute": 1e6} | settings)


@pytest.fixture
def english(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "en.jsonl", task_rows("en", 3))


def test_translations_are_aligned_and_pass_the_gate(english: Path, tmp_path: Path) -> None:
    with chat_server(honest) as server:
        translator = ChatTranslator(client(server), Cache(tmp_path / "cache"))
        said: list[str] = []
        done: list[tuple[int, int]] = []
        paths = translate_lud(
            read_source(str(english)),
            ["es", "zh"],
            translator,
            tmp_path / "out",
            said.append,
            lambda *rows: done.append(rows),
        )
    assert [rows for rows, _ in done] == [*range(1, 19), 18, *range(19, 37), 36]
    assert {total for _, total in done} == {36}
    assert said == [f"{code}: 18 of 18 rows by model at {server.url}" for code in ("es", "zh")]
    lud = read_lud({"en": str(english), **paths})
    assert not any(apply_gate(lud).values())
    rows = lines_of(Path(paths["es"]))
    assert rows == task_rows("es", 3)


def test_lies_are_asked_again_and_never_filled_with_english(english: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], before: int) -> Reply:
        place = json.loads(body["messages"][1]["content"])["instruction"][:3]
        good = translation(body)
        lies = {
            "100": Reply(body["messages"][1]["content"]),  # the English itself
            "101": Reply(json.dumps({**good, "input": ""})),
            "102": Reply(json.dumps({**good, "note": "?"})),
            "103": Reply("I cannot do that."),
            "104": Reply(json.dumps({**good, "input": "inventado"})),
            "105": Reply(json.dumps({**good, "output": ["no", "text"]})),
        }
        if place in lies and (before == 0 or place in ("100", "103")):
            return lies[place]
        return Reply(json.dumps(good, ensure_ascii=False))

    with chat_server(answer) as server:
        translator = ChatTranslator(client(server, num_attempts=3), Cache(tmp_path / "cache"))
        said: list[str] = []
        paths = translate_lud(read_source(str(english)), ["es"], translator, tmp_path, said.append)
    assert said[0].startswith("es: 16 of 18 rows")
    assert said[1:] == [
        "es: row 0: the answer's instruction is still English (after 3 attempts)",
        "es: row 3: the answer is not JSON (Expecting value at character 0) (after 3 attempts)",
    ]
    rows = lines_of(Path(paths["es"]))
    assert rows[0] == {"instruction": "", "input": "", "output": "", "failure": said[1].removeprefix("es: row 0: ")}
    assert [row for row in rows if "failure" not in row] == [
        row for place, row in enumerate(task_rows("es", 3)) if place not in (0, 3)
    ]
    lud = read_lud({"en": str(english), **paths})
    assert apply_gate(lud)["es"] == {"missing": 2}
    asked = Counter(json.loads(one["messages"][1]["content"])["instruction"][:3] for one in server.requests)
    assert {place: asked[place] for place in ("100", "101", "102", "103", "104", "105", "110")} == {
        "100": 3, "101": 2, "102": 2, "103": 3, "104": 2, "105": 2, "110": 1,
    }  # fmt: skip


def test_the_tool_translates_continues_and_builds(english: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, str(ROOT / "tools" / "build_crossin.py"), "--lud", f"en={english}", "--translate", "es,zh",
               "--model", "model", "--mix", "x2x=all", "--out", str(tmp_path / "mix")]  # fmt: skip
    broken = [True]

    def sometimes(body: dict[str, Any], before: int) -> Reply:
        if broken[0] and len(server.requests) > 20:
            return Reply(status=404)
        return honest(body, before)

    with chat_server(sometimes) as server:
        arguments = [*command, "--translator", server.url]
        stopped = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert stopped.returncode == 3, stopped.stderr
        assert "answered 404 to a request for model" in stopped.stderr
        assert not (tmp_path / "mix").exists()
        kept = len((tmp_path / "mix-translations" / "cache.jsonl").read_text().splitlines())
        first, broken[0] = len(server.requests), False
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert kept + len(server.requests) - first == 36
    assert len(lines_of(tmp_path / "mix" / "mix.jsonl")) == 18
    assert "zh: 18 of 18 rows" in done.stdout


class Upper:
    """A text model that is easily foreseen."""

    name = "upper"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def texts(self, texts: list[str], target: Any) -> list[str | None]:
        self.seen += texts
        return [None if "fail" in text else text.upper() for text in texts]


def test_lines_are_translated_once_and_code_is_kept(tmp_path: Path) -> None:
    code = "```\nprint('say it')\n```"
    records = [
        Record(0, "Say it.", "", f"Well:\n\n{code}\n123\nSay it."),
        Record(1, "Say it.", "x fail", "Yes."),
    ]
    model, failures = Upper(), dict[int, str]()
    translator = LineTranslator(model, Cache(tmp_path / "cache"))
    one, other = translator.translate(records, language_of("es"), failures.__setitem__)
    assert one == Record(0, "SAY IT.", "", f"WELL:\n\n{code}\n123\nSAY IT.")
    assert other is None
    assert failures == {1: "a line of the input could not be translated"}
    assert model.seen == ["Say it.", "Well:", "x fail", "Yes."]
    again = Upper()
    LineTranslator(again, Cache(tmp_path / "cache")).translate(records, language_of("es"), failures.__setitem__)
    assert again.seen == ["x fail"]


def test_an_encoder_decoder_translates(tmp_path: Path) -> None:
    """A tiny M2M-100 with random weights: nonsense, but the same each time, and started in the target language."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path / "model"
    words = ["the", "frog", "lives", "near", "water", "of", "a", "pond", "sky", "is", "blue"]
    vocabulary = {
        word: place for place, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "__en__", "__es__", *words])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["__en__", "__es__"], model_max_length=8,
    )  # fmt: skip
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model = transformers.M2M100ForConditionalGeneration(config)
    model.save_pretrained(folder)

    from megalign.translation.model import TranslationModel

    opened = TranslationModel(str(folder), batch_size=2, max_new_tokens=40, device="cpu")
    assert opened._start_of(language_of("es")) == {"forced_bos_token_id": vocabulary["__es__"]}
    texts = ["the frog lives near water", "sky is blue", "the " * 9]
    results = opened.texts(texts, language_of("es"))
    assert results[2] is None  # too long for the model
    reference = model.eval().generate(
        torch.tensor([[*(vocabulary[word] for word in texts[1].split()), 2]]),
        max_new_tokens=40, num_beams=1, do_sample=False, forced_bos_token_id=vocabulary["__es__"],
    )  # fmt: skip
    ended = 2 in reference[0, 1:].tolist()
    assert results[1] == (made.decode(reference[0], skip_special_tokens=True).strip() if ended else None)
    translator = open_translator(TranslatorOptions(f"hf:{folder}"), tmp_path / "cache")
    assert translator.name == str(folder)


def test_translators_that_are_refused(tmp_path: Path, english: Path) -> None:
    with pytest.raises(ConfigError, match="endpoint's model is not named"):
        open_translator(TranslatorOptions("http://127.0.0.1:9/v1"), tmp_path / "c")
    with pytest.raises(DataError, match="cannot be opened as a translation model"):
        open_translator(TranslatorOptions(f"hf:{tmp_path}"), tmp_path / "c")
    with pytest.raises(ConfigError, match="translated from English into other languages"):
        translate_lud(read_source(str(english)), ["en"], LineTranslator(Upper(), Cache(tmp_path / "c")), tmp_path)
    options = TranslatorOptions("http://127.0.0.1:9/v1", "m")
    for files, targets, message in (
        ({"en": str(english)}, "es,xx", "There is no language 'xx'"),
        ({"en": str(english), "es": "x"}, "es", "es is to be translated, and has a file"),
        ({"es": "x"}, "zh", "no English LUD file"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_translations(files, targets, options, tmp_path, print, print)
    assert with_translations({"zh": "x"}, "", options, tmp_path, print, print) == {"zh": "x"}
    with pytest.raises(ConfigError, match="No translator is named"):
        with_translations({"en": str(english)}, "es", TranslatorOptions(""), tmp_path, print, print)


def test_an_endpoint_that_is_down_ends_the_run(tmp_path: Path) -> None:
    """Not after every row has waited for it."""
    english = write_lines(tmp_path / "en.jsonl", task_rows("en", 10))
    with chat_server(honest) as server:
        pass
    translator = ChatTranslator(client(server, num_attempts=1), Cache(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"20 questions failed; the last \(\d+\): the connection failed"):
        translate_lud(read_source(str(english)), ["es"], translator, tmp_path / "out")
    assert not (tmp_path / "out").exists()
