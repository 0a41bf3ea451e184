"""The files of a Suricata."""

import yaml

from sidestep.ids import suricata_config as config


def test_the_configuration_is_yaml_with_nothing_but_what_is_fed():
    text = config.configuration()
    assert text.startswith("%YAML 1.1\n---\n")
    settings = yaml.safe_load(text)
    protocols = settings["app-layer"]["protocols"]
    assert {name for name, each in protocols.items() if each["enabled"] == "yes"} == {"http", "http2"}
    assert settings["unix-command"]["enabled"] == "no"
    assert settings["stream"]["inline"] == "yes"
    [output] = settings["outputs"]
    assert {next(iter(each)) for each in output["eve-log"]["types"]} == {"alert", "stats"}


def test_every_file_that_it_names_is_there():
    files = config.files("rules")
    settings = yaml.safe_load(files[config.CONFIG])
    assert files[config.RULES] == b"rules"
    named = ("classification-file", "reference-config-file", "threshold-file")
    assert {settings["rule-files"][0], *(settings[name] for name in named)} | {config.CONFIG} == files.keys()
