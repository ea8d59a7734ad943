"""Whether Triton's own protobuf reads a config.pbtxt: ``read_config.py FILE``, JSON on standard output."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

config = text_format.Parse(Path(sys.argv[1]).read_text(), model_config_pb2.ModelConfig())
json.dump(json_format.MessageToDict(config, preserving_proto_field_name=True), sys.stdout)
