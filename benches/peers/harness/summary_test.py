"""python3 -m unittest discover -s benches/peers -p '*_test.py'"""

import unittest

from harness import summary


def record(peer, rate, *, setting="s", tasks=1000, durable=True, cpu_s=0.002):
    return {
        "peer": peer,
        "setting": setting,
        "mode": "overlapped",
        "tasks": tasks,
        "durable": durable,
        "whole_tasks_per_s": rate,
        "cpu_s": cpu_s,
    }


class Summary(unittest.TestCase):
    RUNS = [
        *(record("tranche", rate) for rate in (1000, 800, 1200)),
        *(record("quick", rate, durable=False) for rate in (500, 250, 400)),
        *(record("safe", rate) for rate in (110, 100, 80, 90)),
        record("slow", 1, tasks=10),
    ]

    def test_least_median_most(self):
        spread = summary.Spread.of([3, 1, 2, 10])
        self.assertEqual((spread.least, spread.median, spread.most, spread.runs), (1, 2.5, 10, 4))

    def test_ratios_are_of_medians_and_of_the_worst_pair(self):
        by_peer = {row.peer: row for row in summary.rows(self.RUNS)}
        self.assertEqual((by_peer["quick"].ratio, by_peer["quick"].least_ratio), (1000 / 400, 800 / 500))
        self.assertEqual(by_peer["safe"].ratio, 1000 / 95)
        self.assertIsNone(by_peer["tranche"].ratio)
        self.assertEqual(by_peer["safe"].cpu_s, 2.0)

    def test_no_ratio_between_different_numbers_of_tasks(self):
        by_peer = {row.peer: row for row in summary.rows(self.RUNS)}
        self.assertIsNone(by_peer["slow"].ratio)

    def test_tranche_first_then_the_durable(self):
        self.assertEqual([row.peer for row in summary.rows(self.RUNS)], ["tranche", "safe", "slow", "quick"])

    def test_the_verdict_is_about_the_fastest_durable_peer(self):
        text = summary.verdict(summary.rows(self.RUNS))
        self.assertIn("safe (s) with 95 tasks/s: Tranche does 10.5 times", text)
        self.assertIsNone(summary.verdict(summary.rows(self.RUNS[3:])))

    def test_the_table_names_a_mode_only_where_there_are_two(self):
        both = [*self.RUNS, {**record("safe", 50), "mode": "phased"}]
        self.assertIn(
            "| safe, s, phased | yes | 1,000 | 1 | 50 | 50 | 50 | 2.0 | 20.0 | 16.0 |", summary.markdown(both)
        )
        self.assertNotIn("overlapped", summary.markdown(self.RUNS))


if __name__ == "__main__":
    unittest.main()
