"""The provider's metadata. Many Airflow processes import this module, so it has no heavy imports."""

from __future__ import annotations

from typing import Any

from airflow_provider_jojokey import __version__

DISTRIBUTION = "airflow-provider-jojokey"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as defined by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": DISTRIBUTION,
        "name": "JojoKey",
        "description": "Images from `JojoKey's IMG2 API <https://api.jojokey.com>`__: "
        "each paid once, stored in S3, accounted for.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": "JojoKey",
                "external-doc-url": "https://api.jojokey.com",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": "JojoKey",
                "python-modules": ["airflow_provider_jojokey.hooks.jojokey"],
            }
        ],
        "operators": [
            {
                "integration-name": "JojoKey",
                "python-modules": ["airflow_provider_jojokey.operators.jojokey"],
            }
        ],
        "extra-links": [
            "airflow_provider_jojokey.links.jojokey.ImagesLink",
            "airflow_provider_jojokey.links.jojokey.S3ConsoleLink",
        ],
        "notifications": [
            "airflow_provider_jojokey.notifications.smtp.ImagesSmtpNotifier",
            "airflow_provider_jojokey.notifications.slack.ImagesSlackWebhookNotifier",
        ],
        "task-decorators": [
            {
                "name": "jojokey_image",
                "class-name": "airflow_provider_jojokey.decorators.jojokey.jojokey_image_task",
            }
        ],
        "triggers": [
            {
                "integration-name": "JojoKey",
                "python-modules": ["airflow_provider_jojokey.triggers.jojokey"],
            }
        ],
        "cli": ["airflow_provider_jojokey.cli.definition.get_jojokey_commands"],
        "config": {
            "jojokey": {
                "description": "Images from JojoKey: settings for all tasks of a worker.",
                "options": {
                    "spool_directory": {
                        "description": "Where received images stay until S3 confirms them. "
                        "Empty: airflow-jojokey-UID in the temporary directory. In containers, use a volume that "
                        "outlives the container.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/var/lib/airflow/jojokey",
                        "default": "",
                    },
                    "spool_max_age": {
                        "description": "Seconds after which unclaimed images are deleted.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "604800",
                    },
                    "upload_patience": {
                        "description": "Seconds to wait for S3 during an outage, after images were paid.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "600",
                    },
                    "longest_generation": {
                        "description": "Seconds after which a generation of 1024x1024 in high quality has "
                        "definitely ended; larger images take proportionally longer.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "300",
                    },
                    "s3_extra_args": {
                        "description": "Additional S3 parameters for every object that is written, as JSON. "
                        "Operators can override each of them.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/posters"}',
                        "default": "",
                    },
                    "price_per_million": {
                        "description": "Prices of a million tokens and their currency, as JSON. Connections can "
                        "override them. Empty: the published list prices in US dollars.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"currency": "USD", "text_input": 5, "image_input": 8, "image_output": 30}',
                        "default": "",
                    },
                    "thumbnail_directory": {
                        "description": "Where the API server keeps small copies of the images it displays. Empty: "
                        "airflow-jojokey-UID-thumbnails in the temporary directory.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/var/cache/airflow/jojokey",
                        "default": "",
                    },
                    "thumbnail_cache_bytes": {
                        "description": "Maximum total size of these copies in bytes. The least recently displayed "
                        "ones are deleted first.",
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "536870912",
                    },
                },
            }
        },
        "connection-types": [
            {
                "connection-type": "jojokey",
                "hook-class-name": "airflow_provider_jojokey.hooks.jojokey.JojoKeyHook",
                "hook-name": "JojoKey",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "port", "login"],
                    "relabeling": {"host": "Base URL", "password": "Token"},
                    "placeholders": {"host": "https://api.jojokey.com", "password": "sk-…"},
                },
                "conn-fields": {
                    "default_model": {
                        "label": "Default model",
                        "description": "The model if an operator does not name one. Empty: gpt-image-2.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "connect_timeout": {
                        "label": "Connect timeout",
                        "description": "Seconds to wait for a connection. Empty: 10.",
                        "schema": {"type": ["number", "null"], "minimum": 0.1},
                    },
                    "read_timeout": {
                        "label": "Read timeout",
                        "description": "Seconds to wait for the next byte. A high-quality image takes about two "
                        "minutes. If the request times out, you are still billed. Empty: 300.",
                        "schema": {"type": ["number", "null"], "minimum": 1},
                    },
                    "max_resends": {
                        "label": "Resends",
                        "description": "How many times to resend a request that definitely wasn't billed (rate limit, "
                        "no channel, gateway not reached) before Airflow's own retries. Empty: 2.",
                        "schema": {"type": ["integer", "null"], "minimum": 0, "maximum": 10},
                    },
                    "max_resend_wait": {
                        "label": "Resend wait",
                        "description": "Seconds after the first send within which a resend may start, including the "
                        "time that responses take. Empty: 60.",
                        "schema": {"type": ["number", "null"], "minimum": 0},
                    },
                    "price_per_million": {
                        "label": "Prices per million tokens",
                        "description": "JSON with currency, text_input, image_input and image_output. Empty: "
                        "[jojokey] price_per_million.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "true, false, or the path of a CA bundle. Empty: true.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "proxy": {
                        "label": "Proxy",
                        "description": "The URL of an HTTP proxy. Empty: the worker's HTTPS_PROXY, if set.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                },
            }
        ],
    }
