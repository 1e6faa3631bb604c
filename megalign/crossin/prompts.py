"""One convention for tags and prompts, shared by the data, by tuning and by evaluation.

A user's turn is the instruction and, on a line of its own, the input. A tag at the input's end names the language of the answer:
"[zh]" on a line of its own, as released. Templates frame the turn for the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.files import is_utf8
from megalign.hub import chat_text, local_model, unreadable
from megalign.translation.languages import language_of

DEFAULT_TAG = "\n[{code}]"
TRANSLATE = "Translate the following sentence into {name}."

# Named templates: what stands before the user's turn, and between it and the answer.
TEMPLATES = {
    "plain": ("", "\n"),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n",
        "\n\n### Response:\n",
    ),
    "chatml": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "llama-2": ("[INST] ", " [/INST] "),
    "vicuna": ("USER: ", " ASSISTANT: "),
}
# What a named template puts after the answer, beside the tokenizer's end-of-text token.
ENDS = {"chatml": "<|im_end|>"}
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Tag:
    """How the language of the answer is asked for.

    Attributes:
        text: with {code} or {name} of the language; empty for no tag.

    Raises:
        ConfigError: another placeholder, or none; no UTF-8.
    """

    text: str = DEFAULT_TAG

    def __post_init__(self) -> None:
        if not is_utf8(self.text):
            raise ConfigError(f"The tag {self.text!r} is no UTF-8.", "It could not be written.", "Write it in UTF-8.")
        try:
            one, other = (
                self.text.format(code=code, name=name) for code, name in (("en", "English"), ("zh", "Chinese"))
            )
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            raise ConfigError(f"The tag {self.text!r} cannot be filled in.", fix="Use {code} or {name}.") from None
        if self.text and one == other:
            raise ConfigError(
                f"The tag {self.text!r} is the same for all languages.",
                "The model could not know which is asked for.",
                "Use {code} or {name}, or an empty tag.",
            )

    def apply(self, text: str, code: str) -> str:
        """The input with the tag of a language at its end; white space before the tag is left out of an empty input."""
        tag = self.text.format(code=code, name=language_of(code).name)
        return text + tag if text else tag.lstrip()


def user_turn(instruction: str, text: str) -> str:
    """Instruction and input as one turn."""
    return f"{instruction}\n{text}" if text else instruction


@dataclass(frozen=True)
class Template:
    """Frames a user's turn: the prompt ends where the answer begins.

    Attributes:
        name: of TEMPLATES, or the folder or name of a tokenizer with a chat template.
    """

    name: str
    _tokenizer: Any = None

    @classmethod
    def of(cls, name: str, tokenizer: Any = None) -> Template:
        """A named template; the chat template of `tokenizer` for the name "tokenizer"; or of the tokenizer in a folder of that name.

        Raises:
            ConfigError: no such template, or the tokenizer has none.
            DataError: the folder has no tokenizer that can be read.
            EnvironmentProblem: transformers is not installed.
        """
        if name in TEMPLATES:
            return cls(name)
        if name != TOKENIZER:
            if not Path(name).is_dir():
                raise ConfigError(
                    f"There is no template {name!r}.",
                    fix=f"Choose {', '.join(TEMPLATES)}, or name a folder that holds a tokenizer.",
                )
            tokenizer = _tokenizer_in(name)
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"The tokenizer{'' if name == TOKENIZER else ' in ' + name} has no chat template.",
                fix=f"Choose a named template: {', '.join(TEMPLATES)}.",
            )
        return cls(name, tokenizer)

    def prompt(self, turn: str) -> str:
        """What the model reads before it answers; a tokenizer's template writes its special tokens into it."""
        if self._tokenizer is not None:
            chat = [{"role": "user", "content": turn}]
            return chat_text(self._tokenizer, chat, answer_next=True)
        before, after = TEMPLATES[self.name]
        return before + turn + after

    def completion(self, turn: str, answer: str) -> str:
        """What the model is to say after the prompt: the answer, and what the template puts after it.

        Raises:
            ConfigError: a tokenizer's template whose prompt is not the start of its whole chat.
        """
        if self._tokenizer is None:
            return answer + ENDS.get(self.name, "")
        chat = [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        whole = chat_text(self._tokenizer, chat, answer_next=False)
        prompt = self.prompt(turn)
        if not whole.startswith(prompt):
            raise ConfigError(
                "The tokenizer's chat template writes an answered chat otherwise than an unanswered one.",
                "Where the answer begins cannot be told.",
                f"Choose a named template: {', '.join(TEMPLATES)}.",
            )
        return whole[len(prompt) :]

    @property
    def writes_special_tokens(self) -> bool:
        """Whether start and end tokens stand in the text, so that encoding must add none."""
        return self._tokenizer is not None


def _tokenizer_in(folder: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise EnvironmentProblem("transformers is not installed.", fix="pip install megalign[hf]") from None
    try:
        return AutoTokenizer.from_pretrained(local_model(folder), local_files_only=True, trust_remote_code=False)
    except unreadable() as error:
        raise DataError(f"{folder} holds no tokenizer that can be read: {first_line(error)}.") from None
