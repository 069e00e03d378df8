"""What a client does."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from loans.task import LoanClassifier, load_data
from loans.task import evaluate as evaluate_fn
from loans.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    node = context.node_config
    trainloader, _ = load_data(node["partition-id"], node["num-partitions"])
    model = LoanClassifier()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    train_fn(model, trainloader, context.run_config["learning-rate"])
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(trainloader.dataset)}),
        }
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    node = context.node_config
    _, valloader = load_data(node["partition-id"], node["num-partitions"])
    model = LoanClassifier()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss, accuracy = evaluate_fn(model, valloader)
    metrics = {"loss": loss, "accuracy": accuracy, "num-examples": len(valloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
