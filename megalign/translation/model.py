"""Translation with an encoder-decoder of transformers: Marian (opus-mt), M2M-100 and NLLB. Nothing is drawn, so the same text gives the same result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.hub import local_model
from megalign.translation.languages import Language

# NLLB names a language with its script; M2M-100 and Marian use the plain code.
NLLB = {
    "en": "eng_Latn", "es": "spa_Latn", "pt": "por_Latn", "fr": "fra_Latn", "de": "deu_Latn", "it": "ita_Latn", "nl": "nld_Latn",
    "vi": "vie_Latn", "id": "ind_Latn", "ms": "zsm_Latn", "fil": "tgl_Latn", "tr": "tur_Latn", "pl": "pol_Latn", "sv": "swe_Latn",
    "cs": "ces_Latn", "ro": "ron_Latn", "zh": "zho_Hans", "ja": "jpn_Jpan", "ko": "kor_Hang", "th": "tha_Thai", "lo": "lao_Laoo",
    "km": "khm_Khmr", "my": "mya_Mymr", "ar": "arb_Arab", "fa": "pes_Arab", "ur": "urd_Arab", "he": "heb_Hebr", "hi": "hin_Deva",
    "bn": "ben_Beng", "ta": "tam_Taml", "te": "tel_Telu", "el": "ell_Grek", "ru": "rus_Cyrl", "uk": "ukr_Cyrl", "bg": "bul_Cyrl",
}  # fmt: skip


class TranslationModel:
    """A translation model from local files or, where allowed, from the Hub.

    Args:
        name: folder, or name on the Hub.
        batch_size: texts at once.
        max_new_tokens: longest translation; one that does not end within it counts as failed.
        device: e.g. cpu, cuda; unset: the GPU where there is one.
        allow_download: may fetch the model by its name.

    Raises:
        DataError: there is no such encoder-decoder with safetensors weights.
        EnvironmentProblem: torch or transformers is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 512,
        device: str | None = None,
        allow_download: bool = False,
    ) -> None:
        try:
            import torch
            from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        except ImportError as error:
            raise EnvironmentProblem(f"{error.name} is not installed.", fix="pip install megalign[hf]") from None
        found = name if allow_download else local_model(name)
        options: dict[str, Any] = {"local_files_only": not allow_download, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(found, **options)
            model = AutoModelForSeq2SeqLM.from_pretrained(found, use_safetensors=True, **options)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{name} cannot be opened as a translation model: {first_line(error)}.",
                "Models are read from local files with safetensors weights unless downloads are allowed.",
            ) from None
        self.name, self.batch_size, self.max_new_tokens = name, batch_size, max_new_tokens
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.to(self._device).eval()

    def texts(self, texts: Sequence[str], target: Language) -> list[str | None]:
        """Greedy translations from English; None for a text that is too long, or whose translation did not end."""
        return [found[0] if found else None for found in self._generate(texts, target, 1)]

    def choices(self, texts: Sequence[str], target: Language, num_choices: int) -> list[list[str]]:
        """Different translations from English, the most likely first: those that `num_choices` beams end with.

        Fewer where beams read alike or did not end; none for a text that is too long.
        """
        return [list(dict.fromkeys(filter(None, found))) for found in self._generate(texts, target, num_choices)]

    def _generate(self, texts: Sequence[str], target: Language, num_beams: int) -> list[list[str]]:
        """What the beams of each text ended with, the most likely first."""
        start = self._start_of(target)
        limit = min(self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", 1 << 30))
        results: list[list[str]] = [[] for _ in texts]
        lengths = [len(self._tokenizer(text)["input_ids"]) for text in texts]
        order = sorted((place for place, length in enumerate(lengths) if length <= limit), key=lambda at: -lengths[at])
        end = self._model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        for first in range(0, len(order), self.batch_size):
            places = order[first : first + self.batch_size]
            batch = self._tokenizer([texts[at] for at in places], return_tensors="pt", padding=True).to(self._device)
            # generate() runs under no_grad by itself.
            ids = self._model.generate(
                **batch,
                max_new_tokens=self.max_new_tokens,
                num_beams=num_beams,
                num_return_sequences=num_beams,
                do_sample=False,
                **start,
            )
            for number, row in enumerate(ids.tolist()):
                if ends & set(row[1:]):
                    text = str(self._tokenizer.decode(row, skip_special_tokens=True)).strip()
                    results[places[number // num_beams]].append(text)
        return results

    def _start_of(self, target: Language) -> dict[str, int]:
        """What makes the decoder begin in the target language; nothing for models of one pair."""
        known = getattr(self._tokenizer, "lang_code_to_id", None) or {}
        vocabulary = self._tokenizer.get_vocab()
        for code in (NLLB.get(target.code, ""), f"__{target.code}__", target.code):
            if code in known or (code and code in vocabulary and code in self._tokenizer.all_special_tokens):
                source = "en" if code != NLLB.get(target.code) else NLLB["en"]
                self._tokenizer.src_lang = source
                return {"forced_bos_token_id": int(known[code] if code in known else vocabulary[code])}
        if known:
            raise ConfigError(f"{self.name} has no {target.name}.", fix="Choose another model or language.")
        return {}
