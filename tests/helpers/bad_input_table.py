"""A table of bad input: files, command lines that name them, and what each must be told.

`tests/commands/test_bad_input.py` takes those of the table in this process; `benchmarks/faults/bad_inputs.py` gives
each a process of its own and counts. Every case ends in one message with exit code 2, without a traceback or a run
folder.
"""

from __future__ import annotations

from pathlib import Path

CIRCLE = '"include": [{"class": "circle", "count": 1}]'
FILES = {
    "empty.txt": "\n\n",
    "some.txt": "a cat\na dog\n",
    "twice.yaml": "seed: 1\niterations: 2\nseed: 2\n",
    "nested.yaml": "optimizer:\n  lr: 1e-3\n  lr: 1e-4\n",
    "nan.yaml": "optimizer:\n  lr: .nan\n",
    "inf.yaml": "max_minutes: .inf\n",
    "huge.yaml": "optimizer:\n  weight_decay: 1e999\n",
    "text.yaml": "iterations: many\n",
    "list.yaml": "- a\n- b\n",
    "open.yaml": "rewards: {shapes: 1\n",
    "tagged.yaml": "seed: !!python/object/apply:os.system ['touch pwned']\n",
    "cfg.yaml": "sampling:\n  guidance_scale: 0.0\n",
    "eval_cfg.yaml": "sampling:\n  eval_guidance_scale: 0.9\n",
    "ref_cfg.yaml": "algorithm:\n  ref_guidance_scale: 0.0\n",
    "zero.yaml": "rewards:\n  shapes: 0\n",
    "weight.yaml": "rewards:\n  shapes: .inf\n",
    "key.yaml": "optimiser:\n  lr: 1e-3\n",
    "heading.yaml": "optimizer: 3\n",
    "array.jsonl": '["a"]\n',
    "broken.jsonl": '{"prompt": "a cat"}\n{"prompt"\n',
    "text.jsonl": '{"text": "a cat", "tag": "x"}\n',
    "caption.jsonl": '{"prompt": "a cat"}\n{"caption": "a dog"}\n',
    "none.jsonl": '{"prompt": null}\n',
    "number.jsonl": '{"prompt": 3}\n',
    "keys.jsonl": '{"prompt": "a", "prompt": "b"}\n',
    "deep.jsonl": '{"prompt": ' + "[" * 50_000 + "\n",
    "prompts.csv": "a cat\n",
    "class.jsonl": f'{{"prompt": "a", {CIRCLE}}}\n{{"prompt": "b", "include": [{{"class": "unicorn"}}]}}\n',
    "entry.jsonl": '{"prompt": "a", "include": ["circle"]}\n',
    "count.jsonl": '{"prompt": "a", "include": [{"class": "circle", "count": 0}]}\n',
    "colour.jsonl": '{"prompt": "a", "include": [{"class": "circle", "color": "pnk"}]}\n',
    "nothing.jsonl": '{"prompt": "a", "include": []}\n',
    "tags.jsonl": f'{{"prompt": "a", "tag": "x", {CIRCLE}}}\n{{"prompt": "b", "tag": "y", {CIRCLE}}}\n',
    "words.jsonl": '{"prompt": "a", "text": 3}\n',
    "signs.txt": 'a sign "STOP"\na sign\n',
    "signs.jsonl": '{"prompt": "a sign", "text": "STOP"}\n{"prompt": "a sign", "text": ""}\n',
    "cyrillic.txt": 'a sign "STOP"\na sign "Здравствуйте"\n',
    "kana.txt": 'a sign "こんにちは"\n',
}
BYTES = {"latin.txt": b"caf\xe9\n", "latin.yaml": b"name: caf\xe9\n"}

CONFIGS = [  # of `dgpo train` and of `dgpo plan`
    ("twice.yaml", "'seed' stands in line 1 and again in line 3"),
    ("nested.yaml", "'lr' stands in line 2 and again in line 3"),
    ("nan.yaml", "optimizer.lr=nan cannot work: it must be finite"),
    ("inf.yaml", "max_minutes=inf cannot work: it must be finite"),
    ("huge.yaml", "optimizer.weight_decay=inf cannot work"),
    ("text.yaml", "iterations='many'"),
    ("list.yaml", "is no config"),
    ("open.yaml", "cannot read the config"),
    ("tagged.yaml", "cannot read the config"),
    ("latin.yaml", "cannot read the config"),
    ("missing.yaml", "cannot read the config"),
    ("cfg.yaml", "sampling.guidance_scale=0.0 cannot work"),
    ("eval_cfg.yaml", "sampling.eval_guidance_scale=0.9 cannot work"),
    ("ref_cfg.yaml", "ref_guidance_scale=0.0 cannot work"),
    ("zero.yaml", "the reward 'shapes' has the weight 0"),
    ("weight.yaml", "cannot work: it must be finite"),
    ("key.yaml", "unknown field 'optimiser'. Did you mean 'optimizer'?"),
    ("heading.yaml", "optimizer=3: it must hold fields"),
    ("--rewards shapes=nan", "with a finite weight"),
    ("--rewards shapes=much", "'much' is no weight"),
    ("--rewards shapes=1 shapes=2", "--rewards has 'shapes' twice"),
    ("--rewards shapes=0", "the reward 'shapes' has the weight 0"),
    ("--rewards", "rewards is empty"),
    ("--seed 1 --seed 2", "--seed is given twice"),
    ("--optimizer.lr nan", "optimizer.lr=nan cannot work"),
    ("--optimizer.betas 0.9 inf", "optimizer.betas=[0.9, inf] cannot work"),
    ("--max-minutes inf", "max_minutes=inf cannot work"),
    ("--text-dropout nan", "text_dropout=nan cannot work"),
    ("--algorithm.beta nan", "beta=nan"),
    ("--algorithm.kl-coef inf", "algorithm.kl_coef=inf cannot work"),
    ("--algorithm.ref-guidance-scale 0", "ref_guidance_scale=0.0 cannot work"),
    ("--sampling.guidance-scale 0", "sampling.guidance_scale=0.0 cannot work"),
    ("--sampling.guidance-scale nan", "sampling.guidance_scale=nan cannot work"),
    ("--sampling.eval-guidance-scale 0.5", "sampling.eval_guidance_scale=0.5 cannot work"),
    ("--sampling.shift inf", "sampling.shift=inf cannot work"),
    ("--group-size 1", "group_size=1 cannot work"),
    ("--reward-tags shaps=x", "reward_tags names 'shaps'"),
    ("--eval-prompts seen=some.txt seen=empty.txt", "two have the same name"),
]
PROMPTS = [  # of `dgpo train`, of its dry run and of `dgpo plan`: what a look at every row finds
    ("--prompts empty.txt", "there is no prompt in 'empty.txt'"),
    ("--prompts missing.txt", "cannot read the prompt file 'missing.txt'"),
    ("--prompts latin.txt", "cannot read the prompt file 'latin.txt'"),
    ("--prompts prompts.csv", "cannot read prompts from 'prompts.csv'"),
    ("--prompts array.jsonl", "line 1 of 'array.jsonl'"),
    ("--prompts broken.jsonl", "line 2 of 'broken.jsonl' is not JSON"),
    ("--prompts text.jsonl", "its keys are 'text', 'tag', and the text must stand under 'prompt'; rename 'text'"),
    ("--prompts caption.jsonl", "line 2 of 'caption.jsonl' has no prompt: its keys are 'caption'"),
    ("--prompts none.jsonl", "line 1 of 'none.jsonl' has no prompt: got None"),
    ("--prompts number.jsonl", "line 1 of 'number.jsonl' has no prompt: got 3"),
    ("--prompts keys.jsonl", "line 1 of 'keys.jsonl' is not JSON: it has the key 'prompt' twice"),
    ("--prompts deep.jsonl", "line 1 of 'deep.jsonl' is not JSON"),
    ("--prompts some.txt", "reads include from every prompt's metadata; line 1 of 'some.txt' has no include"),
    ("--prompts class.jsonl", "line 2 of 'class.jsonl': the shapes world cannot judge the class 'unicorn'"),
    ("--prompts entry.jsonl", "line 1 of 'entry.jsonl': 'circle' is no entry of include"),
    ("--prompts count.jsonl", "line 1 of 'count.jsonl': count=0"),
    ("--prompts colour.jsonl", "line 1 of 'colour.jsonl': the shapes world cannot judge the color 'pnk'"),
    ("--prompts nothing.jsonl", "line 1 of 'nothing.jsonl': include=[] asks for nothing"),
    ("--prompts tags.jsonl --reward-tags shapes=typo", "no prompt has the tag 'typo'"),
    (
        "--rewards shapes --prompts tags.jsonl --reward-tags shapes=x",
        "no reward is for line 2 of 'tags.jsonl': its tag is 'y'",
    ),
    ("--eval-prompts seen=class.jsonl", "line 2 of 'class.jsonl': the shapes world cannot judge the class 'unicorn'"),
    ("--eval-prompts seen=empty.txt", "there is no prompt in 'empty.txt'"),
    ("--eval-rewards legibility", "legibility reads text"),
    ("--eval-rewards diversity --eval-images-per-prompt 1", "eval_images_per_prompt=1, and"),
    ("--eval-images sen=2", "eval_images names 'sen', which is no evaluation set. Did you mean 'seen'?"),
    ("--eval-prompts auto=prompts --eval-images auto=2", "or, of fewer than 20 prompts, as trained. Known: held_out,"),
    ("--eval-prompts own=prompts", "are auto=prompts, or own=prompts:held_out or own=prompts:trained"),
    ("--eval-images seen=0", "eval_images gives 'seen' 0; it must be at least 1"),
    ("--eval-rewards diversity --eval-images seen=1", "eval_images_per_prompt=1, and"),
    ("--rewards legibility --prompts words.jsonl", "line 1 of 'words.jsonl': text=3 of the prompt 'a' is no word"),
    ("--rewards shape", "unknown reward 'shape'. Did you mean 'shapes'?"),
    ("--rewards no_module:f", "there is no module no_module here"),
]
OCR = [  # the same, where the reader is installed
    ("--rewards ocr --prompts signs.txt", "line 2 of 'signs.txt': the reward ocr does not know which text to read"),
    ("--rewards ocr --prompts signs.jsonl", "line 2 of 'signs.jsonl': the reward ocr does not know which text"),
    ("--rewards ocr --prompts cyrillic.txt", "line 2 of 'cyrillic.txt': the reward ocr cannot read 'Здравствуйте'"),
    ("--rewards ocr --prompts kana.txt", "line 1 of 'kana.txt': the reward ocr cannot read 'こんにちは'"),
]
OTHERS = [  # whole command lines
    ("sample tiny-sd3 --prompt cat --guidance-scale nan", "guidance_scale=nan cannot work"),
    ("sample tiny-sd3 --prompt cat --guidance-scale 0", "guidance_scale=0.0 cannot work"),
    ("sample tiny-sd3 --prompt cat --guidance-scale inf", "guidance_scale=inf cannot work"),
    ("sample tiny-sd3 --prompt cat --prompt dog", "--prompt is given twice"),
    ("sample tiny-sd3", "there is nothing to draw"),
    ("eval tiny-sd3 --eval-prompts seen=class.jsonl", "line 2 of 'class.jsonl'"),
    ("eval tiny-sd3 --sampling.guidance-scale 0", "sampling.guidance_scale=0.0 cannot work"),
    ("collect tiny-sd3 --groups 1 --prompts class.jsonl --out out", "line 2 of 'class.jsonl'"),
    ("score nowhere --rewards brightness", "there is no picture in 'nowhere'"),
    ("score nowhere --rewards brightness=nan", "with a finite weight"),
    ("reward check shapes --tolerance nan", "tolerance=nan cannot work"),
    ("serve-reward brightness --max-mb nan", "max_mb=nan cannot work"),
    ("train --resume nowhere", "nowhere"),
    ("train tny", "Did you mean 'tiny'?"),
]


def write_files(folder: Path) -> None:
    """All files that the command lines name."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)


def cases(with_ocr: bool) -> list[tuple[str, str]]:
    """(command line, part of the message), each command that a fault can reach."""
    rows = [*PROMPTS, *(OCR if with_ocr else [])]
    found = [(f"train {words} --out out", message) for words, message in [*CONFIGS, *rows]]
    found += [(f"train {words} --out out --dry-run", message) for words, message in rows]
    found += [(f"plan {words} --out out", message) for words, message in [*CONFIGS, *rows]]
    return [*found, *OTHERS]
