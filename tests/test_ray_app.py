# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What Ray Serve is asked for by the command. No cluster runs."""

import pytest


pytest.importorskip("ray")

from lumina_mgpt_diffusers.serving.ray import Arguments, app


def test_arguments_of_replicas():
    arguments = Arguments(dtype="float16", max_images="2", fetch_from="images.example,example.org")
    assert arguments.max_images == 2 and arguments.fetch_from == ["images.example", "example.org"]
    assert [Arguments(num_draft_tokens=one).num_draft_tokens for one in ("7", "auto")] == [7, "auto"]
    for wrong in ({"dtype": "int8"}, {"max_pixel": 1}, {"max_slots": "many"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Arguments(**wrong)


def test_replicas_come_and_go_with_the_load():
    deployment = app(Arguments(max_replicas=8, max_slots=32, max_waiting=64, gpus_per_replica=2))._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 8, 8)
    assert deployment.max_ongoing_requests == 32 + 64 + 64 and deployment.ray_actor_options["num_gpus"] == 2
    more = app(Arguments(min_replicas=3))._bound_deployment._deployment_config.autoscaling_config
    assert (more.min_replicas, more.max_replicas) == (3, 3)


def test_the_key_of_replicas(monkeypatch, tmp_path):
    def key_of(arguments: Arguments) -> str | None:
        return app(arguments)._bound_deployment.init_args[1]

    assert key_of(Arguments()) is None
    monkeypatch.setenv("LUMINA_MGPT_API_KEY", "secret")
    assert key_of(Arguments()) == "secret"
    (tmp_path / "key").write_text("other\n")
    assert key_of(Arguments(api_key_file=str(tmp_path / "key"))) == "other"


def test_impossible_numbers_are_found_before_there_is_a_replica():
    for wrong in ({"max_slots": 1}, {"max_images": 0}, {"request_seconds": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            app(Arguments(**wrong))
