"""A bucket of its own behind a real S3 server, which can be taken away and given back."""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

import boto3
import httpx
from moto.server import ThreadedMotoServer

BUCKET = "palimpsest"
HOST = "127.0.0.1"


class Bucket:
    """An S3 server with one bucket; what is stored outlives `stop` and `start`, as with a network that fails."""

    def __init__(self) -> None:
        with socket() as free:
            free.bind((HOST, 0))
            self._port = free.getsockname()[1]
        self.url = f"s3://{BUCKET}/artifacts"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self._port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.start()
        httpx.post(
            f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset"
        ).raise_for_status()  # it outlives its servers
        self.client = boto3.client(
            "s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        self.client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        """Lets it be reached."""
        self._server = ThreadedMotoServer(HOST, self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Takes it away: nobody answers at its address any more."""
        self._server.stop()

    def keys(self) -> list[str]:
        """What is stored, but for the sweeper's clock."""
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(entry["Key"] for entry in listed if not entry["Key"].endswith(".clock"))

    def read(self, key: str) -> bytes:
        """The content of an object."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        """Stores an object as another process would."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def unfinished_uploads(self) -> int:
        """How many uploads in parts were neither completed nor given up; each is paid for."""
        return len(self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


@contextmanager
def bucket() -> Iterator[Bucket]:
    """A bucket for as long as the block runs."""
    made = Bucket()
    try:
        yield made
    finally:
        made.client.close()
        made.stop()
