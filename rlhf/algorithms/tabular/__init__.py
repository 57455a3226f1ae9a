"""LOOP and NORA on finite decision processes, exactly: what the trainers of the same names approximate. numpy only."""
