"""Exports: a recipe's training data written out as files, in the layout of whoever reads them.

    trajlake export default
    trajlake export default --layout axolotl

    exports/
    ├── default -> .versions/default/3f9a1c02b7d4e581
    ├── default.axolotl -> .versions/default.axolotl/90b1d7e2c55a1f08
    └── .versions/default/
        ├── 3f9a1c02b7d4e581/
        │   ├── data/train-00000-of-00002.parquet    rows in plan order
        │   ├── data/eval-00000-of-00001.parquet
        │   ├── manifest.json                        what it was made from, and what it holds
        │   └── README.md                            dataset card, which `datasets` goes by
        └── 81d0c2a94be7f613/                        the export before it

An export is written beside the current one and takes its place in one step, when it is complete.
It does not say when or where it was made: the same inputs give the same bytes.

| module      | what it does                                                            |
|-------------|-------------------------------------------------------------------------|
| `writing`   | the way from tables to files, the same for every layout                 |
| `origin`    | which versions of which tables, which recipe, which code                |
| `source`    | what rows are made from: positions of the plan, trajectories, pairs     |
| `layouts`   | the table of layouts                                                    |
| `rows`      | their rows: pure functions over Arrow tables                            |
| `redaction` | personal data out of rows                                               |
| `card`      | the dataset card                                                        |
| `folder`    | one version at a time, put in place in one step                         |
"""

from orchestration.export.command import export_command
from orchestration.export.origin import code_version
from orchestration.export.writing import Export, export

__all__ = ["Export", "code_version", "export", "export_command"]
