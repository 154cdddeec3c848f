"""Train, evaluate and run a ClassQuery video action detector.

    accelerate launch run_action_detection.py --recipe demo --output_dir out --do_train --do_eval --do_predict
    python run_action_detection.py --do_predict --videos video.mp4 --model_name_or_path DIR --tubes --output_dir out

Values come from the recipe, and from the command line where given there. Every flag of transformers' TrainingArguments
works. The code is `classquery.engine.run`, which `classquery train`, `eval` and `detect` call as well.
"""

import sys


try:
    from classquery.cli import run_script
except ModuleNotFoundError as error:
    if error.name != "classquery":
        raise
    sys.exit('classquery is not installed. In this folder, run: pip install -c constraints.txt -e ".[demo]"')


if __name__ == "__main__":
    sys.exit(run_script())
