"""The report: means and deviations of hand-made runs, grouping, notes, refusals."""

import json
import pathlib
import re
import statistics
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.configs import default
from experiments.program.files import to_json
from experiments.results import figures, finished_runs, groups, page, paper_results
from gradmem_jax.methods import METHODS
from tests.programs import start

PNG = b"\x89PNG"


def make_config(method="gradmem", **changes):
    known = method if method in METHODS else "gradmem"
    config = default.get_config(known)
    config.method = method
    config.update_from_flattened_dict(changes)
    return to_json(config.to_dict())


def make_metrics(exact_match, config, **more):
    by_steps = {
        k: {
            "exact_match": rate,
            "write_loss": 2.0,
            "write_loss_of": {"key": 4.0, "value": 3.0 - k, "delimiter": 0.1},
        }
        for k, rate in ((0, 0.0), (1, exact_match / 2), (2, exact_match))
    }
    return {
        "exact_match": exact_match,
        "num_pairs": config["data"]["num_pairs"],
        "num_write_steps": config["model"]["num_write_steps"],
        "by_num_write_steps": by_steps,
        "steps": 1000,
        "seconds": 90.0,
        "devices": ["1 cpu"],
    } | more


def cells(text, row, table=0):
    """The cells of a table's row, which starts with `row`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


class ReportTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "runs"
        self.out = self.root.parent / "docs" / "results"

    def add(self, name, exact_match, method="gradmem", metrics=None, **changes):
        config = make_config(method, **changes)
        folder = self.root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if exact_match is not None:
            made = make_metrics(exact_match, config, **(metrics or {}))
            (folder / "metrics.json").write_text(json.dumps(made))

    def report(self):
        text = page.write_report(self.root, self.out)
        self.assertEqual((self.out.parent / "results.md").read_text(), text)
        for file in re.findall(r"\]\((.+?)\)", text):
            self.assertStartsWith((self.out.parent / file).read_bytes(), PNG)
        return text

    def test_means_over_seeds_beside_the_paper(self):
        for seed, rate in enumerate((0.95, 0.96, 0.98)):
            self.add(f"n4_{seed}", rate, **{"seed": seed, "init_from": f"runs/{seed}"})
        self.add("n8", 0.5, **{"data.num_pairs": 8})
        self.add("full", 1.0, "full_context", **{"data.num_pairs": 8})
        text = self.report()
        deviation = statistics.stdev([95, 96, 98])
        self.assertAlmostEqual(deviation, 1.5275, 4)
        self.assertEqual(
            cells(text, "GradMem, K = 2"),
            ["GradMem, K = 2", "96.3 ± 1.5 (3) [100.0]", "50.0 [100.0]"],
        )
        self.assertEqual(cells(text, "full context"), ["full context", "", "100.0 [100.0]"])
        self.assertEqual(cells(text, "exact match, %")[1:], ["N = 4", "N = 8"])
        self.assertIn("## Keys of 2, values of 2 symbols out of 62\n", text)
        self.assertNotIn("differ in", text)
        self.assertNotIn("same seed", text)
        self.assertNotIn("not finished", text)

    def test_paper_is_left_out_where_the_task_is_another(self):
        self.add("a", 0.5, **{"data.alphabet_size": 16})
        text = self.report()
        self.assertEqual(cells(text, "GradMem, K = 2"), ["GradMem, K = 2", "50.0"])
        self.assertNotIn("the paper's figure", text)

    def test_metrics_are_not_mixed(self):
        self.add("a", 0.5)
        row = {"exact_match": 0.5, "read_loss": 1.25}
        metrics = {"read_loss": 1.25, "by_num_write_steps": {"0": row}}
        self.add("b", 0.5, "full_context", metrics=metrics, best_metric="read_loss")
        text = self.report()
        sections = re.findall(r"^## .*, by (.*)$", text, re.M)
        self.assertEqual(sections, ["READ loss", "exact match"])
        self.assertEqual(cells(text, "full context"), ["full context", "1.25"])
        self.assertEqual(cells(text, "GradMem, K = 2"), ["GradMem, K = 2", "50.0 [100.0]"])

    def test_a_run_that_was_trained_on_is_not_finished(self):
        self.add("a", 0.5)
        self.add("b", 0.5, metrics={"steps": 1000})
        for name, step in (("a", 1000), ("b", 1001)):
            (self.root / name / "checkpoints" / str(step)).mkdir(parents=True)
        self.assertIn("\n1 run is not finished: b.\n", self.report())

    def test_tasks_are_not_mixed(self):
        self.add("a", 0.2)
        self.add("b", 0.4, **{"data.noise": 0.25})
        self.add("c", 0.6, **{"data.key_length": 1, "data.value_length": 1})
        text = self.report()
        sections = re.findall(r"^## (.*)$", text, re.M)
        self.assertEqual(
            sections,
            [
                "Keys of 1, values of 1 symbols out of 62",
                "Keys of 2, values of 2 symbols out of 62",
                "Keys of 2, values of 2 symbols out of 62, noise 0.25",
            ],
        )
        rates = re.findall(r"^\| GradMem, K = 2 \| (\d+\.\d) ", text, re.M)
        self.assertEqual(rates, ["60.0", "20.0", "40.0"])
        self.assertIn("](results_3_sizes.png)", text)

    def test_other_settings_are_no_other_seeds(self):
        high, low = ({"optimizer.learning_rate": rate} for rate in (1e-3, 1e-4))
        self.add("a0", 0.2, **high)
        self.add("a1", 0.4, **high, seed=1)
        self.add("b", 0.9, **low, evaluate_every=50)
        self.add("c", 0.6, "rmt")
        self.add("d", 0.5, **high, **{"data.num_pairs": 8})
        text = self.report()
        high, low = "evaluate_every=500, optimizer.learning_rate=0.001", "evaluate_every=50, opt"
        rows = [line for line in text.splitlines() if line.startswith("| GradMem, K = 2 |")]
        self.assertIn(f"| {high} | 30.0 ± 14.1 (2) [100.0] | 50.0 [100.0] |", rows[0])
        self.assertIn(f"| {low}imizer.learning_rate=0.0001 | 90.0 [100.0] |  |", rows[1])
        self.assertIn(f"| {high} | N = 4 |", rows[2])
        self.assertEqual(cells(text, "exact match, %")[1:], ["setting", "N = 4", "N = 8"])
        self.assertEqual(cells(text, "RMT, K = 1")[1:3], ["", "60.0 [100.0]"])

    def test_settings_are_told_apart_where_what_is_printed_of_them_is_cut(self):
        names = [f"model.{letter * 20}" for letter in "abcdefgh"]
        configs = [make_config() for _ in range(4)]
        for config, rate, text in zip(configs, (1, 2, 2, 2), "xxxy", strict=True):
            config["optimizer"]["learning_rate"] = 0.001 * rate
            config["model"] |= {name.removeprefix("model."): rate for name in names}
            config["long"] = "x" * 200 + text + "x" * 200
        runs = [
            finished_runs.FinishedRun(f"run{i}", config, {}) for i, config in enumerate(configs)
        ]
        found = groups.settings(runs)
        self.assertEqual(len(set(found.values())), 3, found)
        self.assertEqual(found["run1"], found["run2"])
        self.assertLessEqual(max(map(len, found.values())), 240)
        (values,) = finished_runs.differences(runs[2:]).values()
        self.assertLen(set(values), 2)
        self.assertEndsWith(values[1], " (2)")
        self.assertEqual(finished_runs.told_apart(["a", "a", "a (2)"]), ["a", "a (2)", "a (2) (2)"])

    def test_a_run_of_before_a_field_had_what_runs_did_then(self):
        config = to_json(default.get_config("gradmem", "babi", pretrained=True).to_dict())
        self.assertTrue(finished_runs.all_fields(config)["data.add_begin_token"])
        del config["data"]["add_begin_token"]
        self.assertIs(finished_runs.all_fields(config)["data.add_begin_token"], False)

    def test_differences_that_are_no_setting_are_named(self):
        self.add("a", 0.2, **{"lm.remat": "block", "cpu_devices": 2})
        self.add("b", 0.4, **{"cpu_devices": 2})
        path = self.root / "b" / "config.json"
        fields = json.loads(path.read_text())
        del fields["best_metric"]  # as if it were of a version before this field
        path.write_text(json.dumps(fields))
        text = self.report()
        self.assertRegex(cells(text, "GradMem, K = 2")[1], r"30\.0 ± 14\.1 \(2\)")
        self.assertIn("- Runs of GradMem, K = 2, N = 4 differ in lm.remat ('block', 'auto').", text)
        self.assertIn("- Several runs of GradMem, K = 2, N = 4 have the same seed.", text)

    def test_cost(self):
        size = {"memory_floats": 1024, "num_parameters": 1_050_000, "seconds": 60.0, "steps": 500}
        self.add("a", 0.2, metrics=size)
        self.add("b", 0.4, seed=1, metrics=size | {"seconds": 240.0, "steps": 1500})
        self.add("c", 0.6, "full_context")
        text = self.report()
        self.assertEqual(
            cells(text, "GradMem, K = 2", table=1)[1:],
            ["N = 4", "1,024", "1,050,000", "1,000", "2.5", "1 cpu"],
        )
        self.assertEqual(
            cells(text, "full context", table=1)[1:], ["N = 4", "?", "?", "1,000", "1.5", "1 cpu"]
        )

    def test_memory_tokens(self):
        self.add("a", 0.2, **{"model.num_memory_tokens": 2})
        self.add("b", 0.4, **{"model.num_memory_tokens": 2, "model.num_write_steps": 1})
        self.add("c", 0.6, **{"model.num_memory_tokens": 8})
        self.add("d", 0.7, "full_context")
        text = self.report()
        self.assertIn("| exact match, % | m | K = 1 | K = 2 |", text)
        self.assertIn("| GradMem, N = 4 | 2 | 40.0 | 20.0 |", text)
        self.assertIn("| GradMem, N = 4 | 8 |  | 60.0 |", text)
        self.assertIn("| GradMem, K = 2, m = 2 | 20.0 |", text)
        self.assertIn("| GradMem, K = 2, m = 8 | 60.0 [100.0] |", text)
        self.assertIn("](results_memory.png)", text)

    def test_one_number_of_memory_tokens_needs_no_table(self):
        self.add("a", 0.2)
        text = self.report()
        self.assertNotIn("memory.png", text)
        self.assertNotIn("| m |", text)

    def test_figures_show_the_numbers(self):
        for seed, rate in enumerate((0.4, 0.6)):
            self.add(f"a{seed}", rate, seed=seed)
        self.add("b", 0.8, "rmt", **{"data.num_pairs": 8})
        drawn = {}
        keep = lambda path, values, **options: drawn.update({path.name: (values, options)})
        with mock.patch.object(figures, "panels", keep):
            page.write_report(self.root, self.out)
        values, options = drawn["results_sizes.png"]
        deviation = statistics.stdev([40, 60])
        self.assertEqual(values[""]["GradMem, K = 2"], {4: (50.0, deviation)})
        self.assertEqual(values[""]["RMT, K = 1"], {8: (80.0, 0.0)})
        self.assertEqual((options["x_label"], options["y_label"]), ("pairs N", "exact match, %"))
        values, _ = drawn["results_steps.png"]
        self.assertEqual(list(values), ["N = 4", "N = 8"])
        by_steps = values["N = 4"]["GradMem, K = 2"]
        self.assertEqual({k: mean for k, (mean, _) in by_steps.items()}, {0: 0, 1: 25, 2: 50})
        values, _ = drawn["results_write_loss.png"]
        self.assertEqual(list(values), ["N = 4, value tokens", "N = 4, key tokens"])
        losses = values["N = 4, value tokens"]["GradMem, K = 2"]
        self.assertEqual({k: mean for k, (mean, _) in losses.items()}, {0: 3, 1: 2, 2: 1})

    def test_panels_are_labelled_and_show_everything(self):
        values = {
            "left": {"low": {4: (1.0, 0.0), 16: (2.0, 0.5)}},
            "right": {"high": {4: (9.0, 1.0)}, "low": {8: (3.0, 0.0)}},
        }
        saved = []
        with mock.patch.object(figures.plt, "close", saved.append):
            path = self.root.parent / "figure.png"
            figures.panels(path, values, x_label="pairs N", y_label="loss", log_x=True)
        self.assertStartsWith(path.read_bytes(), PNG)
        (figure,) = saved
        left, right = figure.axes
        self.assertEqual([left.get_title(), right.get_title()], ["left", "right"])
        self.assertEqual((left.get_xlabel(), left.get_ylabel()), ("pairs N", "loss"))
        low, high = left.get_ylim()
        self.assertTrue(low == 0 and high >= 10)
        self.assertEqual([text.get_text() for text in left.get_xticklabels()], ["4", "16"])
        (legend,) = figure.legends
        self.assertCountEqual([text.get_text() for text in legend.get_texts()], ["low", "high"])
        colour = lambda axes, i: axes.containers[i].lines[0].get_color()
        self.assertEqual(colour(left, 0), colour(right, 1))
        self.assertNotEqual(colour(left, 0), colour(right, 0))
        figures.plt.close(figure)

    @parameterized.parameters(
        ("gradmem", {}, "GradMem, K = 2"),
        ("gradmem", {"model.gradient_mode": "first"}, "GradMem, K = 2, first order"),
        (
            "gradmem",
            {"model.gradient_mode": "none", "model.num_write_steps": 5},
            "GradMem, K = 5, no gradient through WRITE",
        ),
        ("gradmem", {"model.second_order_steps": 1}, "GradMem, K = 2, second order in the last 1"),
        ("rmt", {"model.num_write_steps": 3}, "RMT, K = 3"),
        ("full_context", {}, "full context"),
        ("mamba", {}, "Mamba"),
        ("armt", {}, "ARMT"),
        ("warm_start", {}, "warm start, K = 2"),
        ("lstm", {}, "lstm"),
    )
    def test_labels(self, method, changes, expected):
        self.assertEqual(finished_runs.label(make_config(method, **changes)), expected)

    @parameterized.parameters(
        ("gradmem", {"data.num_pairs": 96, "model.num_write_steps": 5}, 88.4),
        ("gradmem", {"model.num_write_steps": 3}, None),
        ("gradmem", {"data.num_pairs": 5}, None),
        ("gradmem", {"data.num_pairs": 8, "model.gradient_mode": "first"}, 46.7),
        ("gradmem", {"model.num_memory_tokens": 4}, None),
        ("gradmem", {"model.second_order_steps": 1}, None),
        ("gradmem", {"data.noise": 0.5}, None),
        ("rmt", {"data.num_pairs": 32, "model.num_write_steps": 5}, 37.0),
        ("full_context", {"data.num_pairs": 64}, 96.5),
        ("mamba", {"data.num_pairs": 32}, 90.2),
        ("mamba", {"data.num_pairs": 32, "lm.state_size": 4}, 12.4),
        ("ttt_linear", {"data.num_pairs": 8}, 97.2),
        ("lact", {"data.num_pairs": 96}, 74.9),
        ("warm_start", {}, None),
    )
    def test_paper_results(self, method, changes, expected):
        self.assertEqual(paper_results.find(make_config(method, **changes)), expected)

    def test_only_some_runs(self):
        self.add("table_a", 0.5)
        self.add("other_b", 0.7, **{"data.num_pairs": 8})
        text = page.write_report(self.root, self.out, only="^table")
        self.assertIn("'--only=^table'", text)
        self.assertEqual(cells(text, "exact match, %"), ["exact match, %", "N = 4"])
        with self.assertRaisesRegex(ValueError, r"--only='\(' is not a regular expression"):
            page.write_report(self.root, self.out, only="(")

    def test_exact_match_by_segment(self):
        changes = {"data.num_pairs": 8, "data.num_segments": 4, "model.num_write_steps": 2}
        row = {"exact_match": 0.5, "exact_match_by_segment": [0.1, 0.2, 0.3, 0.9]}
        self.add("a", 0.5, metrics={"by_num_write_steps": {"2": row}}, **changes)
        with mock.patch.object(figures, "panels", wraps=figures.panels) as drawn:
            text = self.report()
        self.assertIn("results_segments.png", text)
        (values,) = (c.args[1] for c in drawn.call_args_list if "segments" in c.args[0].name)
        points = values["N = 8"]["GradMem, K = 2"]
        self.assertEqual(
            {i: round(mean) for i, (mean, _) in points.items()}, {0: 90, 1: 30, 2: 20, 3: 10}
        )

    def test_runs_of_strangers(self):
        self.add("a", 0.2)
        for i, change in enumerate(
            (
                {"by_num_write_steps": {"x": {"exact_match": 0.1}}},
                {"by_num_write_steps": {"1": {"exact_match": 0.1, "write_loss_of": [1]}}},
                {"by_num_write_steps": {"9" * 400: {"exact_match": 0.1}}},
                {"by_num_write_steps": []},
                {"memory_floats": "many"},
                {"steps": 10**400},
                {"devices": 5},
                {"devices": [["cpu"]]},
            )
        ):
            self.add(f"b{i}", 0.3)
            path = self.root / f"b{i}" / "metrics.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        for i, change in enumerate(({"model": []}, {"data": 5}, {"method": ["x"]}, {"task": 1})):
            self.add(f"c{i}", 0.3)
            path = self.root / f"c{i}" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        self.add("d\n# forged\x1b[2J", None)
        with self.assertLogs("experiments", "WARNING"):
            text = self.report()
        self.assertIn("12 runs are damaged and left out: b0", text)
        self.assertIn("1 run is not finished: d\\n# forged\\u001b[2J.", text)

    def test_infinite_losses(self):
        for seed in range(2):
            self.add(f"a{seed}", 0.3, seed=seed)
            path = self.root / f"a{seed}" / "metrics.json"
            path.write_text(re.sub('"value": [0-9.]+', '"value": Infinity', path.read_text()))
        self.report()

    def test_unfinished_and_damaged_runs(self):
        self.add("a", 0.2)
        for name in ("x/b", "c"):
            self.add(name, None)
        self.add("d", 0.3)
        (self.root / "d" / "metrics.json").write_text('{"exact_match": 0.3')
        self.add("e", 0.3)
        (self.root / "e" / "metrics.json").write_text('{"exact_match": 0.3}')
        self.add("f", float("nan"))
        with self.assertLogs("experiments", "WARNING") as logs:
            text = self.report()
        self.assertLen(logs.output, 3)
        self.assertIn("\n2 runs are not finished: c, x/b.\n", text)
        self.assertRegex(text, r"\n3 runs are damaged and left out: d \(.*no JSON.*, e .*, f ")
        self.assertEqual(cells(text, "GradMem, K = 2")[1], "20.0 [100.0]")

    def test_exported_runs_are_no_runs(self):
        self.add("a", 0.2)
        self.add("exported", None)
        self.add("exported/lm", None)
        (self.root / "exported" / "exported.json").write_text("{}")
        self.assertEqual(finished_runs.find_runs(self.root).unfinished, [])

    def test_a_language_model_is_no_run(self):
        self.add("a", 0.2)
        (self.root / "gpt2").mkdir()
        (self.root / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
        self.assertEqual(finished_runs.find_runs(self.root).unfinished, [])

    @parameterized.parameters(
        ("kv_retrieval", {}, "Keys of 2, values of 2 symbols out of 62"),
        ("babi", {"data_dir": "data/babi", "qa": 2}, "babi"),
        (
            "babi",
            {"varied_copies": 16, "query_tasks": [1, 2]},
            "babi, query_tasks [1, 2], varied_copies 16",
        ),
        ("text_spans", {"query": "go:"}, "text_spans, query go:"),
    )
    def test_headings_name_what_is_not_usual(self, task, changes, expected):
        config = to_json(default.get_config("gradmem", task).to_dict())
        config["data"].update(changes)
        self.assertEqual(finished_runs.task_name(config), expected)

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "runs is not a folder"):
            finished_runs.find_runs(self.root)
        self.root.mkdir()
        with self.assertRaisesRegex(ValueError, "no finished run, .* There is: nothing"):
            finished_runs.find_runs(self.root)
        (self.root / "notes.txt").touch()
        with self.assertRaisesRegex(ValueError, "There is: notes.txt"):
            finished_runs.find_runs(self.root)
        self.add("a", None)
        with self.assertRaisesRegex(ValueError, r"There is: a \(not finished\)"):
            finished_runs.find_runs(self.root)

    def test_program(self):
        self.add("a", 0.2)
        done = start(
            "report", f"--root={self.root}", f"--out={self.out}.md", "--title=Small models"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertStartsWith(done.stdout, "# Small models\n")
        self.assertEqual((self.out.parent / "results.md").read_text(), done.stdout)


if __name__ == "__main__":
    absltest.main()
