# The tour of `json-repl demo`: a session on real data (planets.csv, beside this file), standard library only.
# ruff: noqa -- cells of a session: bare expressions and late imports are what they are about
# fmt: off
# %% Load the planets
import csv
from importlib.resources import files

sheet = files("json_repl").joinpath("data", "planets.csv").read_text()
lines = (line for line in sheet.splitlines() if line[0] != "#")
rows = list(csv.DictReader(lines))
planets = {
    row.pop("name"): {field: float(value) for field, value in row.items()}
    for row in rows
}
print(f"{len(planets)} planets, {len(rows[0])} measured values each")
list(planets)

# %% Transform: units that people compare
AU = planets["Earth"]["distance_1e6_km"]
YEAR = planets["Earth"]["orbital_period_d"]
orbits = {
    name: (row["distance_1e6_km"] / AU, row["orbital_period_d"] / YEAR)
    for name, row in planets.items()
}
for name, (distance_au, period_years) in orbits.items():
    print(f"{name:8} {distance_au:7.3f} au {period_years:9.3f} years")

# %% Statistics: an import, and Kepler's third law (the exponent is 3/2)
import math
import statistics

fit = statistics.linear_regression(
    [math.log(distance_au) for distance_au, _ in orbits.values()],
    [math.log(period_years) for _, period_years in orbits.values()],
)
print(f"period = distance ** {fit.slope:.4f}")
round(fit.slope, 2)

# %% A cell that fails: its traceback is kept, the session goes on
planets["Pluto"]["mass_1e24_kg"]

# %% A mutation in place: nothing is rebound, yet `planets` is seen to change
for planet in planets.values():
    radius_m = planet["diameter_km"] * 1000 / 2
    planet["volume_m3"] = 4 / 3 * math.pi * radius_m**3
sorted(planets, key=lambda name: -planets[name]["volume_m3"])[:3]

# %% Check the sheet against itself: mass by volume, and the density it prints
ratio = {
    name: row["mass_1e24_kg"] * 1e24 / row["volume_m3"]
    / row["density_kg_m3"]
    for name, row in planets.items()
}
worst = max(ratio, key=lambda name: abs(ratio[name] - 1))
print(f"most different: {worst}, {ratio[worst] - 1:+.1%} (it is flattened)")
