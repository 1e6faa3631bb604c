"""Answers of causal language models to questions: text, or the most likely of given options.

A model is a Hugging Face folder (safetensors), a PEFT adapter's folder, or the folder of a run trained here:

    with open_model("runs/enclone/runs/prealign/seed0", batch_size=16) as model:
        texts = model.generate(["2 + 2 ="], max_new_tokens=8, stop=["\\n"])
        totals = model.option_log_likelihoods(["2 + 2 ="], [[" 3", " 4"]])    # nats, summed over tokens
        scores = model.score_options(["2 + 2 ="], [[" 3", " 4"]])[0]          # .log_likelihoods and .num_tokens
        prompt = model.chat_prompt("What is 2 + 2?", system="Be brief.")      # where the tokenizer has a template
        answer_items(model, [Item(0, "2 + 2 =", copied={"label": "B"})], Path("a_res.jsonl"), Greedy(8, ("\\n",)))
        answer_items(model, [Item(0, "2 + 2 =", (" 3", " 4"))], Path("b_res.jsonl"), Choice(names=("A", "B")))

All is deterministic: greedy, without the sampling settings and penalties a model's files may name. Batches are sorted by
length, and what stands beside a prompt in its batch does not enter. Prompts that do not fit are an error unless
`truncate` is set. `answer_items` continues a file that a stop left, and refuses one that was begun with another model, other
items or other settings; its rows are `{id, input, res, **copied}`, with `log_likelihoods` and `num_tokens` of the options
for Choice.

A tokenizer's start token stands before a prompt once, as the tokenizer puts it (a run of ours: the end-of-text token).
Models come from local files unless `allow_download` is set; code that comes with a model is never run.
"""

from megalign.answers.items import Choice, Greedy, Item, answer_items, best_option
from megalign.answers.model import AnswerModel, OptionScores
from megalign.answers.open import open_model

__all__ = [
    "AnswerModel",
    "Choice",
    "Greedy",
    "Item",
    "OptionScores",
    "answer_items",
    "best_option",
    "open_model",
]
