"""Drives tuspy, aiotus and resumable-upload.

Reads a task as a line of JSON, and writes what the client reported. Each task runs in a thread.
"""

import asyncio
import json
import logging
import os
import sys
import threading

import aiohttp
import aiotus
import resumable_upload
import tusclient.client
import tusclient.exceptions
import tusclient.storage.filestorage
import yarl


class Stopped(Exception):
    """The client ends, as if its process were killed."""


class Until:
    """A file that cannot be read beyond an offset."""

    def __init__(self, path, stop):
        self.file, self.stop = open(path, "rb"), stop

    def seek(self, *args):
        return self.file.seek(*args)

    def tell(self):
        return self.file.tell()

    def read(self, size):
        if self.file.tell() >= self.stop:
            raise Stopped
        return self.file.read(size)


def tuspy(task):
    client = tusclient.client.TusClient(task["endpoint"])
    options = {}
    if "storage" in task:
        storage = tusclient.storage.filestorage.FileStorage(task["storage"])
        options = {"store_url": True, "url_storage": storage}
    if "chunk" in task:
        options["chunk_size"] = task["chunk"]
    uploader = client.uploader(
        task["path"],
        metadata=task["metadata"],
        retries=task["retries"],
        retry_delay=0.05,
        upload_checksum=task.get("checksum", False),
        **options,
    )
    uploader.upload(stop_at=task.get("stop"))
    last = uploader.request
    return {
        "outcome": "stopped" if "stop" in task else "success",
        "url": uploader.url,
        "application": last and last.response_headers.get("x-application"),
    }


async def aiotus_upload(task):
    config = aiotus.RetryConfiguration(
        retry_attempts=task["retries"], max_retry_period_seconds=0.05
    )
    metadata = {name: value.encode() for name, value in task["metadata"].items()}
    # aiotus sends a key without a value.
    metadata["empty"] = None
    chunk = task.get("chunk", 4 << 20)
    endpoint = yarl.URL(task["endpoint"])
    async with aiohttp.ClientSession() as session:
        if "parallel" in task:
            parts = []
            with open(task["path"], "rb") as file:
                content = file.read()
            size = -(-len(content) // task["parallel"])
            for n in range(task["parallel"]):
                path = f"{task['path']}.{n}"
                with open(path, "wb") as part:
                    part.write(content[n * size : (n + 1) * size])
                parts.append(open(path, "rb"))
            url = await aiotus.upload_multiple(
                endpoint, parts, metadata, session, config, None, chunk
            )
        elif task.get("resume"):
            with open(task["storage"], encoding="utf-8") as file:
                url = yarl.URL(file.read())
            with open(task["path"], "rb") as file:
                await aiotus.core.upload_buffer(session, url, file, chunksize=chunk)
        elif "stop" in task:
            file = Until(task["path"], task["stop"])
            url = await aiotus.creation.create(session, endpoint, file, metadata)
            with open(task["storage"], "w", encoding="utf-8") as storage:
                storage.write(str(url))
            try:
                await aiotus.core.upload_buffer(session, url, file, chunksize=chunk)
            except Stopped:
                return {"outcome": "stopped", "url": str(url)}
        else:
            with open(task["path"], "rb") as file:
                url = await aiotus.upload(
                    endpoint, file, metadata, session, config, None, chunk
                )
        told = url and await aiotus.metadata(url, session, config)
    if told is not None and task.get("told", True) and told != metadata:
        return {"outcome": f"HEAD told the metadata {told}"}
    return {"outcome": "success" if url else "failed", "url": str(url)}


def resumable(task):
    options = {}
    if "storage" in task:
        options["store_url"] = True
        options["url_storage"] = resumable_upload.FileURLStorage(task["storage"])
    client = resumable_upload.TusClient(
        task["endpoint"],
        chunk_size=task.get("chunk", 1 << 40),
        checksum=task.get("checksum", False),
        override_patch_method=task.get("override", False),
        max_retries=task["retries"],
        retry_delay=0.001,
        **options,
    )
    if task.get("defer"):
        url = client.create_deferred_upload(task["metadata"])
        client.resume_upload(task["path"], url)
    else:
        url = client.upload_file(
            task["path"],
            metadata=task["metadata"],
            stop_at=task.get("stop"),
            parallel_uploads=task.get("parallel", 1),
        )
    if task.get("terminate"):
        client.delete_upload(url)
    return {"outcome": "stopped" if "stop" in task else "success", "url": url}


CLIENTS = {
    "tuspy": tuspy,
    "aiotus": lambda task: asyncio.run(aiotus_upload(task)),
    "resumable-upload": resumable,
}
OUTPUT = threading.Lock()


def run(task):
    try:
        said = CLIENTS[task["client"]](task)
    # Whatever a client raises is its report.
    except Exception as error:
        status = getattr(error, "status_code", None) or getattr(error, "status", None)
        said = {"outcome": status or f"{type(error).__name__}: {error}"}
    with OUTPUT:
        print(json.dumps({"task": task["task"], **said}), flush=True)


logging.disable(logging.CRITICAL)
for line in sys.stdin:
    threading.Thread(target=run, args=(json.loads(line),), daemon=True).start()
os._exit(0)
