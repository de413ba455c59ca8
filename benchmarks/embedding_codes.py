"""Embeddings in few bits beside their rivals: a language model on words, once for each way.

    hpcopt prepare gcide --every 12 --least 1 --words 32000 --name gcide32k
    python benchmarks/embedding_codes.py --data data/gcide32k --out gcide.jsonl --within-s 480

Ways, all with one network but for the embedding:

    full           the table, with each of --dropout: the best of them on the validation text is the others' rival
    product        product quantization learnt from the start (ProductCodes)
    codes          KD codes (CodedEmbedding), drawn at random
    guided         the same, with embeddings drawn to those of the full table after its training
    low_rank       a table of few columns times a matrix, of at least as many bits as product
    hashing        two hashes of a word into one small table, with two weights of the word's own (arXiv:1709.03933)
    quantized      the full table in codes after training, by nanopq, at product's ways and digits
    product, 0     the full table's product quantization, in which frequent words count for more, without training
    full, on       the full table trained on for --more steps
    product, on    product, 0 trained on with the network for as many
    exact, 0       as product, 0, but the first --exact words keep their vectors and others have --exact-digits digits
    exact, on      exact, 0 trained on likewise

Tables of words are trained by Adam on the rows that a step sees (torch.optim.SparseAdam), as the authors of KD codes
do; KD codes by Adam on all. Bits are of the embedding in a written file. Each row is a line of --out; rows that stand
there are not run again, and a row that has begun is finished: --within-s says until when new ones begin. Seeds but the
first take the best dropout alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.code_table import Composer, pack, storage_bits
from hpcopt.models.coded_embedding import CodedEmbedding, CodedEmbeddingConfig
from hpcopt.models.compact import compact_state
from hpcopt.models.product_codes import ProductCodes, ProductCodesConfig
from hpcopt.optim import CosineConfig
from hpcopt.shapes.context import Context
from hpcopt.store.tree import write_tree
from hpcopt.workloads.language_model import LanguageModel, LanguageModelConfig


class LowRank(nn.Module):
    """A table of ``rank`` columns times a matrix."""

    def __init__(self, words: int, width: int, rank: int) -> None:
        super().__init__()
        self.rows, self.map = nn.Embedding(words, rank, sparse=True), nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.rows.weight)
        nn.init.normal_(self.map.weight, std=(rank * width) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.map(self.rows(tokens))
        return found


class Hashed(nn.Module):
    """The sum of two rows of a table of ``buckets``, weighted by two numbers of the word's own."""

    def __init__(self, words: int, width: int, buckets: int) -> None:
        super().__init__()
        self.rows, self.weights = nn.Embedding(buckets, width), nn.Embedding(words, 2, sparse=True)
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


OF_THE_TABLE = ("data", "width", "units", "cutoffs", "batch", "length", "steps", "lr", "windows")  # its options
Embed = Callable[[nn.Embedding], nn.Module]
Trained = tuple[LanguageModel, dict[str, Any]]


class Bench:
    """One text and one network."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def workload(self, seed: int, dropout: float) -> LanguageModel:
        """With the table."""
        o = self._options
        network = LstmConfig(width=o.width, units=o.units, dropout=dropout, head="adaptive", cutoffs=tuple(o.cutoffs))
        config = LanguageModelConfig(data=o.data, batch=o.batch, length=o.length, model=network)
        return config.build(Context(run_seed=seed))

    def train(
        self, seed: int, dropout: float, embed: Embed | None = None, start: dict[str, Tensor] | None = None
    ) -> Trained:
        """Train with an embedding in the place of the table, and say how well it does and what it takes.

        Args:
            seed: of the network and of the order of windows.
            dropout: of the network.
            embed: makes the embedding; None: the table.
            start: weights of a network with the table, to be trained on for fewer steps and at a lower rate.
        """
        o = self._options
        workload = self.workload(seed + (1000 if start else 0), dropout)
        model: Any = workload.model
        if start is not None:
            model.load_state_dict(start)
        model.word.sparse = True
        if embed is not None:
            model.word = embed(model.word)
        steps, lr = (o.more, o.more_lr) if start else (o.steps, o.lr)
        rows = [p for p in model.parameters() if len(p) == model.head.softmax.n_classes]
        if isinstance(model.word, CodedEmbedding):
            rows = []
        others = [p for p in model.parameters() if not any(p is row for row in rows)]
        optimizers = [torch.optim.Adam(others, lr=lr, fused=True)]
        optimizers += [torch.optim.SparseAdam(rows, lr=lr)] if rows else []
        schedule, start_s = CosineConfig(warmup=0.05), time.process_time()
        model.train()
        for step, batch in enumerate(islice(workload.train_batches(0, 1, 0), steps)):
            loss = workload.loss(model, batch)
            if (penalty := getattr(model.word, "penalty", None)) is not None:
                loss, model.word.penalty = loss + penalty, None
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = schedule.factor(step, steps) * lr
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(others, 1.0)
            for optimizer in optimizers:
                optimizer.step()
        cpu_s = time.process_time() - start_s
        state = model.word.state_dict()
        return workload, {
            **self.scores(workload),
            "bits": bits_in_a_file(compact_state(state) if "composer.tables" in state else state),
            "words": len(workload._nbytes),
            "epochs": round(steps / (workload.steps_per_epoch or 1), 3),
            "train_loss": round(float(loss.detach()), 4),
            "cpu_s": round(cpu_s, 1),
        }

    def scores(self, workload: LanguageModel) -> dict[str, float]:
        """Perplexities."""
        return {split: round(perplexity(workload, split, self._options.windows), 3) for split in ("validation", "test")}

    def full(self, seed: int, dropout: float) -> Trained:
        """The full table; it is trained once, and kept beside --out for those that begin with it."""
        o = self._options
        path = o.out.with_suffix(f".{seed}.{dropout}.pt")
        settings = {name: str(getattr(o, name)) for name in OF_THE_TABLE}
        kept = torch.load(path) if path.exists() else {"settings": None}
        if kept["settings"] != settings:
            workload, row = self.train(seed, dropout)
            torch.save({"model": workload.model.state_dict(), "row": row, "settings": settings}, path)
            return workload, row
        workload = self.workload(seed, dropout)
        workload.model.load_state_dict(kept["model"])
        return workload, kept["row"]

    def trained_on(self, seed: int, dropout: float, embed: Embed | None) -> dict[str, Any]:
        """From the full table and its network on."""
        return self.train(seed, dropout, embed, self.full(seed, dropout)[0].model.state_dict())[1]

    def product(self, table: nn.Embedding, digits: int | None = None, exact: int = 0) -> nn.Module:
        """Learnt product quantization, of --digits if no others are given."""
        o = self._options
        config = ProductCodesConfig(ways=o.ways, digits=digits or o.digits, ordered=True, exact=exact)
        made = ProductCodes(table, config)
        made.sparse = True
        return made

    def exact(self, table: nn.Embedding) -> nn.Module:
        """The same with fewer digits, and vectors of the most frequent words."""
        return self.product(table, self._options.exact_digits, self._options.exact)

    def codes(self, table: nn.Embedding, guide: Literal["none", "table"] = "none") -> nn.Module:
        """KD codes; with a guide, drawn to this table."""
        o = self._options
        return CodedEmbedding(
            table,
            CodedEmbeddingConfig(ways=o.kd_ways, digits=o.kd_digits, inner=o.kd_inner, spread=o.kd_spread, guide=guide),
        )

    def guided(self, seed: int, dropout: float) -> dict[str, Any]:
        """KD codes from the start, drawn to the full table as it was trained."""
        model: Any = self.full(seed, dropout)[0].model
        return self.train(seed, dropout, lambda _: self.codes(model.word, "table"))[1]

    def equal_bits(self, table: nn.Embedding) -> int:
        """What learnt product quantization takes by the formula."""
        o, width = self._options, table.embedding_dim
        composer = Composer(o.digits, o.ways, width // o.digits, width, "concat")
        return storage_bits(table.num_embeddings, o.digits, o.ways, composer)

    def low_rank(self, table: nn.Embedding) -> nn.Module:
        """Of at least as many bits."""
        words, width = table.weight.shape
        return LowRank(words, width, -(-self.equal_bits(table) // (32 * (words + width))))

    def hashing(self, table: nn.Embedding) -> nn.Module:
        """Likewise."""
        words, width = table.weight.shape
        return Hashed(words, width, max(2, -(-(self.equal_bits(table) - 64 * words) // (32 * width))))

    def as_it_begins(self, seed: int, dropout: float, embed: Embed) -> dict[str, Any]:
        """The full table's product quantization, by counts, without training."""
        workload, found = self.full(seed, dropout)
        model: Any = workload.model
        model.word = embed(model.word)
        bits = bits_in_a_file(compact_state(model.word.state_dict()))
        return {**found, **self.scores(workload), "bits": bits}

    def quantized(self, seed: int, dropout: float) -> dict[str, Any]:
        """The full table in codes by k-means of its slices."""
        import nanopq

        o = self._options
        workload, found = self.full(seed, dropout)
        parameter: Any = workload.model.word
        before = parameter.weight.detach().clone()
        table = before.numpy()
        pq = nanopq.PQ(M=o.digits, Ks=o.ways, verbose=False).fit(table, iter=10, seed=seed)
        codes = pq.encode(table)
        with torch.no_grad():
            parameter.weight.copy_(torch.from_numpy(pq.decode(codes)))
            scores = self.scores(workload)
            parameter.weight.copy_(before)
        state = {"packed": pack(torch.from_numpy(codes.astype(np.int64)), o.ways), "tables": torch.tensor(pq.codewords)}
        return {**found, **scores, "bits": bits_in_a_file(state)}


def rows(bench: Bench, done: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Rows in their order, each with what makes it."""
    o = bench._options
    for seed in o.seeds:
        for dropout in o.dropout if seed == o.seeds[0] else (best(done, o.dropout[0]),):
            yield {"way": "full", "seed": seed, "dropout": dropout}, lambda s=seed, d=dropout: bench.full(s, d)[1]
        d = best(done, o.dropout[0])
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "product, on": lambda s=seed, d=d: bench.trained_on(s, d, bench.product),
            "full, on": lambda s=seed, d=d: bench.trained_on(s, d, None),
            "product, 0": lambda s=seed, d=d: bench.as_it_begins(s, d, bench.product),
            "exact, 0": lambda s=seed, d=d: bench.as_it_begins(s, d, bench.exact),
            "exact, on": lambda s=seed, d=d: bench.trained_on(s, d, bench.exact),
            "quantized": lambda s=seed, d=d: bench.quantized(s, d),
            "hashing": lambda s=seed, d=d: bench.train(s, d, bench.hashing)[1],
            "product": lambda s=seed, d=d: bench.train(s, d, bench.product)[1],
            "low_rank": lambda s=seed, d=d: bench.train(s, d, bench.low_rank)[1],
            "codes": lambda s=seed, d=d: bench.train(s, d, bench.codes)[1],
            "guided": lambda s=seed, d=d: bench.guided(s, d),
        }
        for way, make in ways.items():
            if not o.ways_to_run or way in o.ways_to_run:
                yield {"way": way, "seed": seed, "dropout": d}, make


def best(done: list[dict[str, Any]], otherwise: float) -> float:
    """The full table's dropout by the validation text, of those that have run."""
    full = [row for row in done if row["way"] == "full"]
    return float(min(full, key=lambda row: row["validation"])["dropout"]) if full else otherwise


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("data/gcide32k"))
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--within-s", type=float, default=1e9, help="wall seconds within which rows begin")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--ways-to-run", nargs="+", help="of those above, beside full (default: all)")
    p.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    p.add_argument("--ways", type=int, default=128)
    p.add_argument("--digits", type=int, default=32)
    p.add_argument("--exact", type=int, default=900)
    p.add_argument("--exact-digits", type=int, default=16)
    p.add_argument("--kd-ways", type=int, default=16)
    p.add_argument("--kd-digits", type=int, default=16)
    p.add_argument("--kd-inner", type=int, default=64)
    p.add_argument("--kd-spread", type=float, default=0.1)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--units", type=int, default=64)
    p.add_argument("--cutoffs", type=int, nargs="+", default=[300, 2000, 10000])
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--length", type=int, default=32)
    p.add_argument("--steps", type=int, default=1280)
    p.add_argument("--more", type=int, default=320)
    p.add_argument("--lr", type=float, default=0.03)
    p.add_argument("--more-lr", type=float, default=3e-3)
    p.add_argument("--windows", type=int, default=1200, help="of each text to evaluate on")
    options = p.parse_args()
    torch.set_num_threads(1)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("out", "within_s", "seeds", "dropout", "ways_to_run")
    }
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = [row for row in done if {**settings, **row["settings"]} == settings]  # old rows know fewer settings
    start_s = time.monotonic()
    for row, make in rows(Bench(options), done):
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
