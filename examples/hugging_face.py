"""A language model of transformers, its values kept, under ZeRO-3: the model finds its loss in the batch by itself.

torchrun --nproc-per-node 2 examples/hugging_face.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import paralab

CONFIG = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, use_cache=False
)


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (4, 8, 32))
    batches = [{"input_ids": part, "labels": part} for part in tokens]
    with paralab.join() as world:
        # or, with trained values: lambda: AutoModelForCausalLM.from_pretrained("folder or name")
        trainer = paralab.parallelize(
            lambda: LlamaForCausalLM(CONFIG),
            "zero3",
            world=world,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4),
        )
        world.print(trainer.layout, paralab.prove(trainer, batches))
        for batch in trainer.shard(batches):
            world.print(f"loss {trainer.step(batch).loss:.4f}")


if __name__ == "__main__":
    main()
