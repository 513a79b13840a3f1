"""How one candidate is made and judged: pruned from the teacher, distilled, evaluated, exported."""
