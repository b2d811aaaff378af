"""Write stages.json: small results of every stage, with the revision of the stage that gave them.

python tests/golden/make_stages.py, after a revision in `expportrait_cli/pipeline/steps.py` was raised.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.stage_results import stage_results

from expportrait_cli.pipeline.steps import REVISIONS

if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        results = stage_results(Path(folder))
    rows = {
        name: {"revision": REVISIONS[name], "values": [round(value, 5) for value in values]}
        for name, values in results.items()
    }
    text = ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in rows.items())
    Path(__file__).with_name("stages.json").write_text(f"{{\n{text}\n}}\n")
