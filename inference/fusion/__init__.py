"""Image and clinical record to one probability, by a mechanism that the model card names.

Whatever the mechanism, the network gives a correction to the logit of the image alone. It is the difference
of what it makes of the record and what it makes of the learned "absent" tokens in the record's place, so
without a record it is exactly 0 and the fused result is the image-only one, bit for bit. The image says how
much the record counts, within bounds: the network that made the embedding has seen the training nodules, and
a head that may read their label off it does, and then fails on unseen patients.

- `table`: the record as numbers, with the range of Brock's model.
- `mechanism`: what all mechanisms share; `contrast` (M1), `joint` (M2), `attention` (M3), `distilled` (M4),
  `attributes` (M5) and `view_attention` (M6) are the six; `mechanisms` finds one by its name.
- `fused`: a trained one for use; `report`: the findings that it changes and what a report says of it.

The part that reads the record was trained on synthetic records (`inference.train.fusion`): see
`SYNTHETIC_STATEMENT`. Research use only, not for primary diagnosis.
"""

from inference.fusion.fused import Fusion, ImageEvidence, TextTower, clip_text_tower
from inference.fusion.joint import JointEmbedding
from inference.fusion.mechanism import EMBEDDING, ImageParts, Mechanism, RecordParts
from inference.fusion.mechanisms import MECHANISMS, mechanism_of
from inference.fusion.report import SYNTHETIC_STATEMENT, apply_record
from inference.fusion.table import TABLE, NoduleFacts, brock_range, encode_table, nodule_facts, table_rows

__all__ = [
    "EMBEDDING",
    "MECHANISMS",
    "SYNTHETIC_STATEMENT",
    "TABLE",
    "Fusion",
    "ImageEvidence",
    "ImageParts",
    "JointEmbedding",
    "Mechanism",
    "NoduleFacts",
    "RecordParts",
    "TextTower",
    "apply_record",
    "brock_range",
    "clip_text_tower",
    "encode_table",
    "mechanism_of",
    "nodule_facts",
    "table_rows",
]
