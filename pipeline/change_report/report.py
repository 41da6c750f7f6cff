"""The report of a checkout against a commit."""

from pathlib import Path

from pipeline.change_report import sections
from pipeline.change_report.changes import (
    Base,
    count_images,
    diff_metrics,
    diff_params,
    list_changed_files,
    list_changed_outputs,
    open_base,
    require_evaluation,
)
from pipeline.change_report.judgement import compare_with_base, judge
from pipeline.change_report.sections import Section
from pipeline.dvc_yaml import read_stages, stages_up_to
from pipeline.flows.dvc_process import read_plan
from pipeline.git import git
from pipeline.params import PARAMS_FILE, load_params
from pipeline.tracking.provenance import read_tree


def create_report(workspace: Path, against: str) -> tuple[str, list[Section]]:
    """Compare a checkout with a commit. Changes nothing in either.

    Args:
        against: a branch, tag or commit.

    Returns:
        the title and the sections of the report.

    Raises:
        PipelineError: git does not know the commit, it has no `dvc.lock`, or the checkout has no evaluated model.
    """
    outputs = require_evaluation(workspace)
    with open_base(workspace, against) as base:
        comparison = compare_with_base(outputs, base)
        stages = read_stages(workspace)
        found = [
            Section("State", list(_describe_state(workspace, base))),
            sections.describe_decision(judge(workspace, outputs, base, comparison)),
            sections.describe_comparison(base, comparison),
            sections.describe_metrics(base, diff_metrics(workspace, base.commit)),
            sections.describe_params(base, diff_params(workspace, base.commit)),
            sections.describe_data(
                base,
                list_changed_outputs(base.outputs, outputs, stages),
                count_images(base.outputs),
                count_images(outputs),
            ),
            sections.describe_files(list_changed_files(workspace, base.commit)),
        ]
        if figures := sections.describe_figures(workspace):
            found.append(figures)
    dataset = load_params(workspace / PARAMS_FILE).dataset.name
    return f"{dataset}: this checkout against {base}", found


def _describe_state(workspace: Path, base: Base) -> list[str]:
    tree = read_tree(workspace)
    state = ", with uncommitted changes" if tree and tree.dirty else ""
    about = [f"Commit {git(workspace, 'rev-parse', '--short=10', 'HEAD')}{state}, compared with {base}."]
    evaluated = stages_up_to("evaluate", read_stages(workspace))
    if pending := [stage for stage in read_plan(workspace).pending() if stage in evaluated]:
        about.append(f"Out of date: a run would run {', '.join(pending)}. The figures below are those of the last run.")
    if base.missing_commits:
        about.append(
            f"{base.name} has {base.missing_commits:,} commits that this checkout lacks. It shows them as undone; "
            f"to take them in: git merge {base.name}"
        )
    return about
