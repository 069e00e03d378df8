"""The clients' side of `sim.process_grid`: one process that is many nodes, one after the other."""

import pickle
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException, LoadClientAppError
from flwr.common.constant import ErrorCode
from flwr.supercore.object_ref import load_app

from sim.direct_grid import RUN_ID, Client


@dataclass(frozen=True)
class Nodes:
    """What all nodes of a run have in common.

    Attributes
    ----------
    count : int
    app : str
        Folder of the Flower app.
    client_app : str
        Its ClientApp, ``module:attribute``.
    run_config : dict
    """

    count: int
    app: str
    client_app: str
    run_config: UserConfig

    def context(self, node_id: int, partition: int, state: RecordDict) -> Context:
        """Return what a node's ClientApp is called with."""
        config: UserConfig = {"partition-id": partition, "num-partitions": self.count}
        return Context(RUN_ID, node_id, config, state, dict(self.run_config))


@dataclass(frozen=True)
class Task:
    """One request, and what its node remembers.

    Attributes
    ----------
    message : Message
    partition : int
        Number of the node.
    state : bytes
        ``Context.state`` as the node's last reply left it, pickled; empty at first.
    """

    message: Message
    partition: int
    state: bytes


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes
    ----------
    reply : Message
    state : bytes or None
        As in `Task`; None: what the node remembers stays as it was.
    traceback : str
        Of what the ClientApp raised, if it did.
    """

    reply: Message
    state: bytes | None
    traceback: str = ""


def serve(connection: Connection, nodes: Nodes) -> None:
    """Answer lists of tasks, an outcome each, until the other end is closed."""
    client = _load(nodes)
    try:
        while True:
            for task in connection.recv():
                connection.send(answer(client, task, nodes))
    except (EOFError, BrokenPipeError):
        return


def answer(client: Client, task: Task, nodes: Nodes) -> Outcome:
    """Let one node answer; as in Flower's engine, what it raises is told by its reply."""
    message = task.message
    state: RecordDict = pickle.loads(task.state) if task.state else RecordDict()
    context = nodes.context(message.metadata.dst_node_id, task.partition, state)
    try:
        reply = _call(client, _apart(message), context)
        return Outcome(reply, pickle.dumps(context.state))
    except ClientAppException as error:
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Outcome(error_reply(message, code, error), None, traceback.format_exc())
    except LoadClientAppError as error:
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        return Outcome(error_reply(message, code, error), None, traceback.format_exc())


def error_reply(message: Message, code: int, error: Exception) -> Message:
    """Return the reply that Flower's engine makes of an exception."""
    return Message(Error(code, f"{type(error)}:<'{error}'>"), reply_to=message)


def _load(nodes: Nodes) -> Client:
    """Return the ClientApp, or one that says why there is none."""
    try:
        app = load_app(nodes.client_app, LoadClientAppError, nodes.app)
        if not isinstance(app, ClientApp):
            raise LoadClientAppError(f"{nodes.client_app} is no ClientApp")
        return app
    except Exception as error:
        reason = LoadClientAppError(str(error))

        def refuse(message: Message, context: Context) -> Message:
            raise reason

        return refuse


def _call(client: Client, message: Message, context: Context) -> Message:
    try:
        reply = client(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, and no Message")
        return reply
    except LoadClientAppError:
        raise
    except Exception as error:
        raise ClientAppException(str(error)) from error


def _apart(message: Message) -> Message:
    """Give a message records of its own: those that came with others may be shared by them."""
    for key, record in list(message.content.items()):
        if isinstance(record, ArrayRecord):
            message.content[key] = ArrayRecord(dict(record))
    return message
