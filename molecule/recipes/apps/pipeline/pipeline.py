import luigi

VERSION = 1


class Extract(luigi.Task):
    day = luigi.DateParameter()

    def output(self):
        return luigi.LocalTarget(f"data/{self.day}.csv")

    def run(self):
        with self.output().open("w") as file:
            file.write("1\n2\n3\n")


class Total(luigi.Task):
    day = luigi.DateParameter()

    def requires(self):
        return Extract(self.day)

    def output(self):
        return luigi.LocalTarget(f"data/{self.day}.total")

    def run(self):
        with self.input().open() as numbers, self.output().open("w") as file:
            file.write(f"{sum(int(line) for line in numbers)} by version {VERSION}\n")
