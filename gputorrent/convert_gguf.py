"""Turn a GGUF model into a folder that the engine loads. Run with the *engine's* Python, never imported.

``python convert_gguf.py MODEL.gguf FOLDER``: weights are widened to float32, kept as bfloat16, and saved
with tokenizer and chat template. Needs transformers, gguf and accelerate; about 35 s for 135 M parameters.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: convert_gguf.py MODEL.gguf FOLDER\n")
        return 2
    source, target = Path(arguments[0]).resolve(), Path(arguments[1])
    started = time.monotonic()

    def say(what: str) -> None:
        sys.stdout.write(f"{what} ({time.monotonic() - started:.0f} s)\n")
        sys.stdout.flush()

    say("loading torch and transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    say("widening the weights")
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain now; left in place, these would make the saved model claim to be quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    say("saving")
    target.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    say("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
