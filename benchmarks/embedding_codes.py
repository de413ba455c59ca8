"""Codes instead of a table of embeddings, beside its rivals: a language model on words, once for each way.

    hpcopt prepare gcide --least 5
    python benchmarks/embedding_codes.py --data data/gcide --out embedding_codes.jsonl --within-s 480

Ways, all with one network but for the embedding, and one number of steps:

    full       the table, with dropout 0, 0.2 and 0.4: the best of them on the validation text is what others must beat
    codes      KD codes by the straight-through gradient
    guided     the same, drawn to the full table that was trained before (dropout as the best), or to one beside them
    low_rank   a table of few columns times a matrix
    hashing    two hashes of a word into one small table, with two weights of the word's own (arXiv:1709.03933)
    quantized  product quantization of the full table after training, by nanopq, at the codes' ways and digits

Bits are of the embedding in a written file. Each row is a line of --out; rows that stand there are not run again, and
a row that has begun is finished: --within-s says until when new ones begin.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.code_table import Composer, pack, storage_bits
from hpcopt.models.coded_embedding import CodedEmbedding, CodedEmbeddingConfig, compact_state
from hpcopt.optim import CosineConfig
from hpcopt.shapes.context import Context
from hpcopt.store.tree import write_tree
from hpcopt.workloads.language_model import LanguageModel, LanguageModelConfig

DROPOUTS = (0.0, 0.2, 0.4)


class LowRank(nn.Module):
    """A table of ``rank`` columns times a matrix."""

    def __init__(self, words: int, width: int, rank: int) -> None:
        super().__init__()
        self.rows, self.map = nn.Embedding(words, rank), nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.rows.weight)
        nn.init.normal_(self.map.weight, std=(rank * width) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.map(self.rows(tokens))
        return found


class Hashed(nn.Module):
    """The sum of two rows of a table of ``buckets``, weighted by two numbers of the word's own."""

    def __init__(self, words: int, width: int, buckets: int) -> None:
        super().__init__()
        self.rows, self.weights = nn.Embedding(buckets, width), nn.Embedding(words, 2)
        nn.init.normal_(self.rows.weight, std=width**-0.5)
        nn.init.ones_(self.weights.weight)
        draw = np.random.default_rng(0)  # stands for two hash functions
        self.register_buffer("places", torch.from_numpy(draw.integers(0, buckets, (words, 2))), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.rows(self.places[tokens]) * self.weights(tokens)[..., None]).sum(-2)


def bits_in_a_file(state: dict[str, Tensor]) -> int:
    """Bits of a written file that holds these tensors and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embedding.h5"
        write_tree(path, {name: tensor.contiguous() for name, tensor in state.items()})
        return 8 * path.stat().st_size


def perplexity(workload: LanguageModel, split: str, windows: int) -> float:
    """Of the first windows of a text."""
    workload._split, workload.test_samples = split, windows
    sums: dict[str, float] = {}
    workload.model.eval()
    with torch.no_grad():
        for batch in workload.test_batches(0, 1):
            for name, value in workload.score(workload.model, batch).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    workload.model.train()
    return workload.finish({name: torch.tensor(value) for name, value in sums.items()})["test_perplexity"]


class Bench:
    """One text, one network, one number of steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._full = options, dict[tuple[int, float], tuple[LanguageModel, dict[str, Any]]]()

    def run(self, seed: int, dropout: float, embed: Callable[[nn.Embedding, int], nn.Module] | None) -> dict[str, Any]:
        """Train with an embedding in the place of the table, and say how well it does and what it takes."""
        o = self._options
        network = LstmConfig(width=o.width, units=o.width, dropout=dropout, head="adaptive", cutoffs=tuple(o.cutoffs))
        config = LanguageModelConfig(data=o.data, batch=o.batch, length=o.length, model=network)
        workload = config.build(Context(run_seed=seed))
        model: Any = workload.model
        words = model.word.num_embeddings
        if embed is not None:
            model.word = embed(model.word, words)
        optimizer = torch.optim.Adam(model.parameters(), lr=o.lr, fused=True)
        schedule, start_s = CosineConfig(warmup=0.05), time.process_time()
        model.train()
        for step, batch in enumerate(islice(workload.train_batches(0, 1, 0), o.steps)):
            optimizer.param_groups[0]["lr"] = schedule.factor(step, o.steps) * o.lr
            loss = workload.loss(model, batch)
            if (penalty := getattr(model.word, "penalty", None)) is not None:
                loss, model.word.penalty = loss + penalty, None
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        cpu_s = time.process_time() - start_s
        state = model.word.state_dict()
        state = compact_state(state) if isinstance(model.word, CodedEmbedding) else state
        self.workload = workload
        return {
            **self.scores(),
            "bits": bits_in_a_file(state),
            "words": words,
            "train_loss": round(float(loss.detach()), 4),
            "cpu_s": round(cpu_s, 1),
        }

    def full(self, seed: int, dropout: float) -> dict[str, Any]:
        """The full table; it is trained once, and kept for those that begin with it."""
        if (seed, dropout) not in self._full:
            found = self.run(seed, dropout, None)
            self._full[seed, dropout] = self.workload, found
        self.workload, found = self._full[seed, dropout]
        return found

    def scores(self) -> dict[str, float]:
        """Of the network trained last."""
        return {
            split: round(perplexity(self.workload, split, self._options.windows), 3) for split in ("validation", "test")
        }

    def codes(self, **settings: Any) -> Callable[[nn.Embedding, int], nn.Module]:
        """Codes, of the options' ways and digits."""
        o = self._options
        config = CodedEmbeddingConfig(ways=o.ways, digits=o.digits, inner=o.inner, **settings)
        return lambda table, _: CodedEmbedding(table, config)

    def equal_bits(self, words: int) -> int:
        """What codes take by the formula."""
        o = self._options
        return storage_bits(words, o.digits, o.ways, Composer(o.digits, o.ways, o.inner, o.width, "mean"))

    def low_rank(self, table: nn.Embedding, words: int) -> nn.Module:
        """Of at least as many bits as codes."""
        width = self._options.width
        return LowRank(words, width, -(-self.equal_bits(words) // (32 * (words + width))))

    def hashing(self, table: nn.Embedding, words: int) -> nn.Module:
        """Likewise."""
        width = self._options.width
        return Hashed(words, width, max(2, -(-(self.equal_bits(words) - 64 * words) // (32 * width))))

    def quantized(self, seed: int, dropout: float) -> dict[str, Any]:
        """The full table in codes by k-means of its slices."""
        import nanopq

        o = self._options
        found = self.full(seed, dropout)
        parameter: Any = self.workload.model.word
        before = parameter.weight.detach().clone()
        table = before.numpy()
        pq = nanopq.PQ(M=o.digits, Ks=o.ways, verbose=False).fit(table, iter=10, seed=seed)
        codes = pq.encode(table)
        with torch.no_grad():
            parameter.weight.copy_(torch.from_numpy(pq.decode(codes)))
            scores = self.scores()
            parameter.weight.copy_(before)
        state = {"packed": pack(torch.from_numpy(codes.astype(np.int64)), o.ways), "tables": torch.tensor(pq.codewords)}
        return {**found, **scores, "bits": bits_in_a_file(state)}

    def guided_by_the_table(self, seed: int, dropout: float) -> dict[str, Any]:
        """Codes drawn to a table trained before, of the best dropout."""
        self.full(seed, dropout)
        table = self.workload.model.word.weight.detach().clone()

        def embed(old: nn.Embedding, _: int) -> nn.Module:
            with torch.no_grad():
                old.weight.copy_(table)
            return self.codes(guide="table", guide_weight=self._options.guide_weight)(old, _)

        return self.run(seed, 0.0, embed)


def rows(bench: Bench, done: list[dict[str, Any]], seeds: list[int]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Rows that are missing, the most telling first, each with what makes it."""
    for seed in seeds:

        def best(seed: int = seed) -> float:
            """The full table's dropout by the validation text, of those that have run."""
            mine = [row for row in done if row["way"] == "full" and row["seed"] == seed]
            return float(min(mine, key=lambda row: row["validation"])["dropout"]) if mine else DROPOUTS[1]

        weight = bench._options.guide_weight
        online = bench.codes(guide="online", guide_weight=weight)
        plan: list[tuple[str, float | None, Any]] = [
            ("full", 0.2, lambda s=seed: bench.full(s, 0.2)),
            ("codes", 0.0, lambda s=seed: bench.run(s, 0.0, bench.codes())),
            ("low_rank", 0.0, lambda s=seed: bench.run(s, 0.0, bench.low_rank)),
            ("full", 0.0, lambda s=seed: bench.full(s, 0.0)),
            ("quantized", None, lambda s=seed: bench.quantized(s, best(s))),
            ("hashing", 0.0, lambda s=seed: bench.run(s, 0.0, bench.hashing)),
            ("guided, online", 0.0, lambda s=seed, embed=online: bench.run(s, 0.0, embed)),
            ("guided, table", None, lambda s=seed: bench.guided_by_the_table(s, best(s))),
            ("full", 0.4, lambda s=seed: bench.full(s, 0.4)),
            ("codes", 0.2, lambda s=seed: bench.run(s, 0.2, bench.codes())),
            ("low_rank", 0.2, lambda s=seed: bench.run(s, 0.2, bench.low_rank)),
        ]
        for way, dropout, make in plan:
            yield {"way": way, "seed": seed, "dropout": dropout}, make


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("data/gcide"))
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--within-s", type=float, default=1e9, help="wall seconds within which rows begin")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--ways", type=int, default=16)
    p.add_argument("--digits", type=int, default=16)
    p.add_argument("--inner", type=int, default=64)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--cutoffs", type=int, nargs="+", default=[2000, 10000])
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--length", type=int, default=32)
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--guide-weight", type=float, default=10.0)
    p.add_argument("--windows", type=int, default=2000, help="of each text to evaluate on")
    options = p.parse_args()
    torch.set_num_threads(1)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("out", "within_s", "seeds")
    }
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = [row for row in done if row["settings"] == settings]
    start_s = time.monotonic()
    for row, make in rows(Bench(options), done, options.seeds):
        if time.monotonic() - start_s > options.within_s:
            break
        if any(all(old[key] == row[key] for key in row) for old in done):
            continue
        done.append({**row, **make(), "settings": settings})
        with options.out.open("a") as out:
            out.write(json.dumps(done[-1]) + "\n")
        print({key: value for key, value in done[-1].items() if key != "settings"}, flush=True)


if __name__ == "__main__":
    main()
