"""Endpoints on judge_server.py, what it was asked, and items to be judged."""

import httpx2

from leaf.http import Endpoint


def seen(url):
    return httpx2.get(url).json()


def endpoint(url, **options):
    return Endpoint(url, "m", **{"wait_s": 0.01, "concurrency": 4, "retries": 3, **options})


def item(answer, **more):
    return {"passage": "p", "question": "q", "reference": "r", "answer": answer, **more}
