"""What `ltune predict` leaves: predictions.jsonl in the order of the rows, and how close the answers are to the labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ltune.checkpoints.publish import write_atomically

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class PredictionWriter(BasePredictionWriter):
    """Writes predictions.jsonl and predictions_metrics.json into the run folder and prints the scores.

    predict_step gives a list of {"prompt": str, "predict": str, "label": str or None, "row": int} for each batch. Each rank
    writes what it gets at once into a hidden part; at the end rank 0 joins the parts (so all ranks must see the run folder)
    and moves the result into place: a predictions.jsonl that can be seen is whole.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._part: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens this rank's part, after those of an interrupted run are gone."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            for stale in folder.glob(".predictions.part-*"):
                stale.unlink()
        trainer.strategy.barrier("ltune: old predictions removed")
        self._part = _part_path(folder, trainer.global_rank).open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Appends the batch's rows to this rank's part."""
        assert self._part is not None
        for answer in prediction:
            record = {name: answer[name] for name in ("prompt", "predict", "label")}
            line = {"place": [dataloader_idx, answer["row"]], "record": record}
            self._part.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._part.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the parts, scores the rows that have a label, and prints the table (rank 0)."""
        assert self._part is not None
        self._part.close()
        trainer.strategy.barrier("ltune: predictions written")
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        parts = [_part_path(folder, rank) for rank in range(trainer.world_size)]
        records = _in_row_order(parts)
        write_atomically(folder / "predictions.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        for part in parts:
            part.unlink()
        labelled = [(record["predict"], record["label"]) for record in records if record["label"] is not None]
        counts = {"rows": len(records), "scored": len(labelled)}
        scores, note = _scores_or_note(labelled)
        write_atomically(folder / "predictions_metrics.json", json.dumps(counts | scores, indent=2) + "\n")
        for name, value in counts.items():
            print(f"{name:<8} {value:>6d}")
        for name, score in scores.items():
            print(f"{name:<8} {score:>6.2f}")
        if note:
            print(note)
        print(f"written: {folder / 'predictions.jsonl'}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted predict leaves no part behind."""
        if self._part is not None:
            self._part.close()
            _part_path(Path(trainer.default_root_dir), trainer.global_rank).unlink(missing_ok=True)


def score(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """BLEU-4 over all rows together (sacrebleu) and the mean F1 of ROUGE-1, 2 and L over rows (rouge-score), each 0 to 100.

    A word is a run of letters and digits; each Chinese, Japanese or Korean character counts as a word, since there are no
    spaces between words there. Raises ImportError where the extra `metrics` is not installed.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="zh").corpus_score(list(predictions), [list(labels)]).score
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    scorer = RougeScorer(list(names), tokenizer=_Words())
    rows = [scorer.score(label, prediction) for prediction, label in zip(predictions, labels, strict=True)]
    rouge = {title: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name, title in names.items()}
    return {"BLEU-4": bleu} | rouge


class _Words:
    """The interface that rouge-score wants of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _scores_or_note(labelled: list[tuple[str, str]]) -> tuple[dict[str, float], str | None]:
    if not labelled:
        return {}, "no scores: no row has a label"
    try:
        return score([prediction for prediction, _ in labelled], [label for _, label in labelled]), None
    except ImportError as error:
        return {}, f"no scores: {error.name} is not installed; pip install 'ltune[metrics]'"


def _part_path(folder: Path, rank: int) -> Path:
    return folder / f".predictions.part-{rank}"


def _in_row_order(parts: Sequence[Path]) -> list[dict[str, Any]]:
    """A row that two ranks got (samplers repeat rows to give each rank the same number) is kept once."""
    by_place = {tuple(line["place"]): line["record"] for part in parts for line in _lines(part)}
    return [by_place[place] for place in sorted(by_place)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as part:
        yield from map(json.loads, part)
