"""What the server does."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from loans.task import LoanClassifier

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model and save it."""
    torch.manual_seed(0)
    arrays = ArrayRecord(LoanClassifier().state_dict())
    strategy = FedAvg(min_available_nodes=3)
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=context.run_config["num-server-rounds"],
    )
    out_dir = Path(context.run_config["out-dir"])
    torch.save(result.arrays.to_torch_state_dict(), out_dir / "final_model.pt")
    metrics = {
        "clientapp": [dict(metrics) for metrics in result.evaluate_metrics_clientapp.values()]
    }
    (out_dir / "metrics.json").write_text(json.dumps(metrics))
