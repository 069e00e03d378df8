"""Federated averaging that keeps the best model and a log, and lowers the learning rate."""

import json
import time
from collections.abc import Callable, Iterable
from logging import INFO
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info

from bestmodel.task import Net


class CustomFedAvg(FedAvg):
    """Saves a model whenever it is the best so far, and each round's results."""

    def set_save_path(self, path: Path) -> None:
        """Say where models and results are saved."""
        self.save_path = path

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lower the learning rate from the third round on."""
        if server_round > 2:
            config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds; save the best model and a line of results a round."""
        log(INFO, "Starting %s strategy:", self.__class__.__name__)
        log_strategy_start_info(num_rounds, initial_arrays, train_config, evaluate_config)
        self.summary()
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        result, arrays, best = Result(), initial_arrays, 0.0

        for current_round in range(1, num_rounds + 1):
            log(INFO, "[ROUND %s/%s]", current_round, num_rounds)
            started = time.time()

            # Training on the clients
            replies = list(
                grid.send_and_receive(
                    messages=self.configure_train(current_round, arrays, train_config, grid),
                    timeout=timeout,
                )
            )
            agg_arrays, train_metrics = self.aggregate_train(current_round, replies)
            if agg_arrays is not None:
                result.arrays = arrays = agg_arrays
            if train_metrics is not None:
                result.train_metrics_clientapp[current_round] = train_metrics

            # Evaluation on the clients
            evaluate_replies = grid.send_and_receive(
                messages=self.configure_evaluate(current_round, arrays, evaluate_config, grid),
                timeout=timeout,
            )
            client_metrics = self.aggregate_evaluate(current_round, evaluate_replies)
            if client_metrics is not None:
                result.evaluate_metrics_clientapp[current_round] = client_metrics

            # Evaluation on the server
            if evaluate_fn is not None:
                server_metrics = evaluate_fn(current_round, arrays)
                result.evaluate_metrics_serverapp[current_round] = server_metrics
                if server_metrics["accuracy"] > best:
                    best = server_metrics["accuracy"]
                    self.save_best(arrays, best)

            line = {
                "round": current_round,
                "lr": train_config["lr"],
                "nodes": [reply.metadata.src_node_id for reply in replies],
                "seconds": time.time() - started,
                "train": dict(train_metrics or {}),
                "clientapp": dict(client_metrics or {}),
                "serverapp": dict(result.evaluate_metrics_serverapp[current_round]),
            }
            with (self.save_path / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return result

    def save_best(self, arrays: ArrayRecord, accuracy: float) -> None:
        """Save a model that is better than all before."""
        log(INFO, "New best model: accuracy %.4f", accuracy)
        model = Net()
        model.load_state_dict(arrays.to_torch_state_dict())
        torch.save(model.state_dict(), self.save_path / "best_model.pt")
