import os
import time

from celery import Celery

queue = Celery("thumbnails", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
queue.conf.task_acks_late = True


@queue.task
def shrink(size: int, seconds: float = 0) -> int:
    time.sleep(seconds)
    return size // 2
