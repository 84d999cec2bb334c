"""One Prefect task per stage. To import any part of it bounds the requests of this process to Prefect's API."""

from rowvec_tasks.api_deadline import bound_requests

bound_requests()
