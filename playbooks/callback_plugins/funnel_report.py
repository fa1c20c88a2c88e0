"""Callback plugin of the playbooks, which Ansible loads from this directory: reports runs and sends notifications."""

from __future__ import annotations

from ansible_collections.funnel.tornado.plugins.plugin_utils.run_callback import CallbackModule

__all__ = ["CallbackModule"]
