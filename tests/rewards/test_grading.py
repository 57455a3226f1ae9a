"""The grader's judgement, class by class: each line is `gold | content of the box`."""

import pytest

from rlhf.rewards import grade

RIGHT = r"""
\frac{1}{2} | 0.5
\frac{1}{2} | \frac12
12 | 12 \text{ cm}
12 | 12cm
12 | 12 m
12 | 12\,\text{m/s}
5 | 5 \text{ m}^2
12 | 12 \text{ square meters}
12 | 12 square units
6 \text{ hours} | 6 hours
60 | 60^{\circ}
60^\circ | 60 \text{ degrees}
\frac{1}{2} | \sin 30^\circ
x=5 | 5
5 | x = 5
(1,2) | (x,y) = (1,2)
1,2 | \{1, 2\}
1,2 | 2,1
1,2 | x = 1, x = 2
1,2 | x=1,2
1,2 | x = 2 \text{ or } x = 1
-2,2 | \pm 2
\pm 2 | -2, 2
x = \pm 2 | x=2, x=-2
\{1,2,3\} | \{3,2,1\}
[-2,7] | -2\le x\le 7
[-2,7] | x \in [-2, 7]
(2,\infty) | x > 2
x>2 | (2,\infty)
x \ge 2 | [2, \infty)
(-\infty,2)\cup(3,\infty) | x<2 \text{ or } x>3
(-\infty,3)\cup(3,\infty) | x \ne 3
(-\infty,3)\cup(3,\infty) | \mathbb{R} \setminus \{3\}
(-\infty,\infty) | \mathbb{R}
\frac{\pi}{4} | \pi/4
\frac{\pi}{4} | 0.25\pi
2\sqrt{3} | \frac{6}{\sqrt{3}}
\sqrt{50} | 5\sqrt2
\sqrt[3]{54} | 3\sqrt[3]{2}
-2 | \sqrt[3]{-8}
2x+3 | 3+2x
y=2x+3 | 2x+3
2x+3 | f(x) = 2x+3
(x-1)(x+1) | x^2-1
x^2+y^2=1 | y^2 + x^2 = 1
5x - 7y + 11z + 4 = 0 | -5x+7y-11z-4=0
x+2y=3 | 2x+4y=6
\frac{1}{x+1} | (x+1)^{-1}
e^{2x} | (e^x)^2
\ln 8 | 3 \ln 2
\log_2 32 | 5
\log 100 | 2
\tan 45^\circ | 1
n! | n \cdot (n-1)!
\binom{n}{2} | \frac{n(n-1)}{2}
\binom{5}{2} | 10
5! | 120
|x| | |{-x}|
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix} 1/2 \\ 2 \end{pmatrix} | \frac{1}{2}\begin{pmatrix} 1 \\ 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]
3+4i | 4i+3
(1+i)^2 | 2i
\sqrt{-1} | i
i | \sqrt{-1}
1,234 | 1234
1234 | 1{,}234
1234567 | 1,234,567
10000 | 10{,}000
\$32,\!348 | 32348
32348 | \$32,348
1.5 \times 10^{3} | 1500
6.02e23 | 6.02 \times 10^{23}
1\frac{3}{4} | \frac{7}{4}
1\frac{3}{4} | 1.75
\frac74 | 1 3/4
0.\overline{3} | \frac13
\frac{1}{3} | 0.\overline{3}
50\% | 50
50 | 50%
\text{Tuesday} | tuesday
\text{Tuesday} | \textbf{Tuesday}
\text{(A)} | A
A | (A)
\text{A} | \textbf{(A)}
B | \text{B}
\text{no} | No
\text{even} | \text{ Even.}
3:4 | 3 : 4
3:30 | 3:30
3:30 \text{ p.m.} | 3:30 \text{ PM}
3:30 \text{ p.m.} | 3:30
11_2 | 11_{2}
2516_8 | 2516_{8}
2516_8 | 2516
2\pi r | 2r\pi
\alpha + \beta | \beta+\alpha
x_1 + x_2 | x_{2}+x_{1}
\frac{3\sqrt{3}}{4} | \frac{3}{4}\sqrt{3}
-\frac{1}{2} | \frac{-1}{2}
-\frac{1}{2} | -.5
\frac{-3}{-4} | 3/4
a^2b | ba^2
ab | ba
abc | a b c
xyz | x\cdot y\cdot z
\emptyset | \{\}
\infty | +\infty
-\infty | -\infty
\text{undefined} | undefined
\text{June 20} | June 20
\text{June 20} | \text{june 20}
8\text{ and }9 | 8, 9
8 \text{ and } 9 | 9 and 8
(0,9), (3,4) | (3,4) \text{ and } (0,9)
2\sin x\cos x | \sin 2x
\sin^2 x | (\sin x)^2
\sin^{-1}(1/2) | \arcsin \frac12
\cos\left(\frac{\pi}{3}\right) | \frac12
\lfloor 3.7 \rfloor | 3
\gcd(12,18) | 6
\frac{x^3}{3}+C | \frac13 x^3 + C
2^{10} | 1024
2^{100} | 4^{50}
4\text{th} | 4
4 | 4^{\text{th}}
4^{th} | 4
10 \text{ miles per hour} | 10
10 | 10 \text{ mph}
10 | 10\text{ ft/s}
5 | \mathbf{5}
5 | \mathrm{5}
5 | {5}
5 | \textbf{5}
5 | \text{5}
5 | 5.
5 | $5$
5 | \(5\)
5 | \left(5\right)
5 | +5
5 | \,5\,
5 | 5\text{.}
5 | 5\quad
5 | =5
5 | \displaystyle 5
5 | 5.00
5 | \boldsymbol{5}
5 | 5 \text{ units}
5 | 5\;\text{units}
5 | 2+3=5
5 | n=5
5 | f(2) = 5
5 | AB = 5
5 | \angle ABC = 5
5 | |AB| = 5
5 | \text{Area} = 5
5 | \text{Total: } 5
5 | x \approx 5
x^2 + 1 | p(x) = x^2 + 1
p - q | p-q
\frac{2 + \sqrt{7}}{3} | \frac{\sqrt7+2}{3}
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19}
\{1\pm\sqrt{5},-2\} | -2, 1+\sqrt5, 1-\sqrt5
\left( -\frac{1}{3} \right) | -1/3
[0,1) | [0, 1)
\langle 1,2 \rangle | (1,2)
(3,4] | 3 < x \le 4
\frac{m}{n} | m/n
\frac{9}{1} | 9
2 \frac{1}{3} | 2+\frac{1}{3}
x^{2} | x²
\sqrt{2} | √2
\pi | π
3\pi | 3π
2/3 | ⅔
3 1/2 | 3½
\theta | θ
2 \le x | x≥2
1,3,5 | 1; 3; 5
\text{Alice, Bob} | Alice and Bob
x=3,y=4 | x = 3, y = 4
(3,4) | x=3, y=4
\frac{1}{1+\frac{1}{x}} | \frac{x}{x+1}
(a+b)^3 | a^3+3a^2b+3ab^2+b^3
4,6,14,15 | 4, 6, 14 \text{ and } 15
\cot x | \frac{\cos x}{\sin x}
\frac{1}{2}, 1 | 1, 0.5
16\text{ cm}^2 | 16
\sqrt{3}-1 | -1+\sqrt{3}
e | \mathrm{e}
12\% | 12 \text{ percent}
0.12 | .12
100 | 100 \text{ USD}
70 | 70\text{ cents}
9 | \sqrt{81}
5 | \textcolor{red}{5}
5 | \color{blue}{5}
5 | \underline{5}
5 | \mathbf{\text{5}}
5 | \fbox{5}
5 | 5 \checkmark
5 | \therefore 5
\dfrac{5}{8} | \frac{5}{8}
\frac58 | 5 \div 8
x<5 | (-\infty,5)
1<x<2 | (1,2)
7.0 | 7
x = \frac{3}{2} | 1.5
y = -2x | y=-2 \cdot x
r=5 | r = 5
\text{The set of all real numbers} | \text{the set of all real numbers}
0.5, 0.25 | \frac12, \frac14
(\sqrt{2}, \sqrt{2}) | (2^{1/2}, 2^{0.5})
\left\{\frac{1}{2}, 3\right\} | \left\{3, \frac{1}{2}\right\}
\{x \mid x > 2\} | (2,\infty)
a_n = 2n+1 | 2n+1
a_{n} | a_n
2^n | 2^{n}
2^{n+1} - 2 | 2(2^n-1)
\frac{n(n+1)}{2} | \frac{n^2+n}{2}
(-1)^n | (-1)^{n}
\frac{1}{\sqrt{2}} | 2^{-1/2}
k\pi | \pi k
\sqrt{x^2+1} | (x^2+1)^{1/2}
x\sqrt{x} | x^{3/2}
\sqrt{x}\sqrt{y} | \sqrt{xy}
\frac{\ln 3}{\ln 2} | \log_2 3
\cosh x | \frac{e^x+e^{-x}}{2}
-\frac{\sqrt{3}}{2} - \frac{1}{2}i | \frac{-\sqrt3 - i}{2}
\cos 20^\circ | \sin 70^\circ
e^{i\pi/3} | \frac{1}{2}+\frac{\sqrt{3}}{2}i
\text{cis } 60^\circ | \text{cis } 60^\circ
1\,000\,000 | 1000000
\frac{10\,000}{3} | \frac{10000}{3}
3.14159 | 3.14159
2 : 3 | 4 : 6
\overline{AB} | \overline{AB}
\triangle ABC | \triangle ABC
12 \text{ or } 13 | 13, 12
""".strip().splitlines()

WRONG = r"""
\frac{1}{2} | 0.51
6 \text{ hours} | 6 \text{ minutes}
1 | 1.0000000001
\sqrt{2} | 1.41421356237309504880168872420969807856967187537694
\pi | 3.14159265358979323846264338327950288419716939937510
\pi | \frac{22}{7}
50\% | 0.5
50 | 5000\%
5 | 5,6
5 | 5 \text{ or } 6
5 | \{5,6\}
5 | \pm 5
(1,2) | (2,1)
(1,2) | [1,2]
[1,2) | [1,2]
(1,2) | \{1,2\}
x>2 | x\ge 2
x>2 | x<2
1,2 | 1,2,3
1,2,3 | 1,2
1,1,2 | 1,2,2
x^2 | x^3
|x| | x
\sqrt{x^2} | x
x | \sqrt{x^2}
3+4i | 3-4i
\text{no} | \text{on}
now | won
\text{even} | \text{neve}
11_2 | 11_3
\frac{1}{3} | 0.333333333333333333333333333333
0.\overline{3} | 0.3333333333
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
y=2x+3 | y=3x+2
x=5 | x=-5
5 | 2x=5
5 | x+1=5
5 | x^2=5
5 | x>5
5 | x \ne 5
5 | 4 < 5
5 | 5 \text{ not}
5 | \text{not } 5
5 | 5 \text{ or so}
5 | \text{about } 5 \text{ or } 6
3:30 \text{ p.m.} | 3:30 \text{ a.m.}
3:30 | 30:3
e^{-1000} | 0
0 | e^{-1000}
10^{-60} | 0
\sin(10^{-30}) | 10^{-30}
10^{50}+1 | 10^{50}
\sqrt{10^{50}+1} | 10^{25}
2^{1000} | 2^{1000}+1
(x+1)^{20} | (x+1)^{20} + 10^{-40}
A | B
\text{(A)} | (B)
\text{Alice} | \text{Bob}
\text{Alice} | \text{Alice or Bob}
42 | 4 2
42 | 2
42 | \text{forty}
12 | 12^2
12 | 12x
12 | 12 \cdot 2
2 | 12 - 10 + 1
0 | \emptyset
\emptyset | 0
\emptyset | \{0\}
\mathbb{R} | \mathbb{Z}
1 | \text{True}
0 | \text{False}
-\infty | \infty
\infty | 10^{100}
(-\infty,2) | (-\infty,2]
(0,1)\cup(1,2) | (0,2)
(0,1)\cup(2,3) | (0,1)
5 | 5?
5 | ?5
5 | 5...
5 | \ldots 5
n! | n
\binom{n}{2} | \frac{n(n+1)}{2}
2^n | 2n
x^2+y^2=1 | x^2+y^2=2
x+y=3 | x+y+3=0
2x+3y<5 | 2x+3y>5
x<5 | x<6
1,234 | 1.234
1234 | 1,2,3,4
1.5 | 15
3 \frac{1}{2} | \frac{3}{2}
42 | "42 or 43"
100 | 1,00
100 | 1e3
5 | \frac{5}{0}
x | X
a+b | a-b
\cos x | \sin x
\frac{1}{x} | x
(3,4) | (3,4,5)
3,4 | (4,3)
\pi | \pi^2
\log 2 | \ln 2
120^\circ | 120\pi
0.1 | \frac{1}{11}
9 | 9!
1 | 1!!!!2
""".strip().splitlines()


def judge(line: str) -> str:
    gold, _, answer = line.partition(" | ")
    return grade(f"So the result is $\\boxed{{{answer}}}$.", gold).outcome


@pytest.mark.parametrize("line", RIGHT)
def test_the_same_answer_written_otherwise_is_right(line: str) -> None:
    assert judge(line) == "right"


@pytest.mark.parametrize("line", WRONG)
def test_another_answer_is_wrong(line: str) -> None:
    assert judge(line) == "wrong"


@pytest.mark.parametrize("gold", ["", "   ", r"\int_0^1 x dx", r"\frac{", r"\frac{0}{0}", "9" * 5000 + "x"])
def test_a_gold_answer_that_cannot_be_read_is_ungradable_not_wrong(gold: str) -> None:
    verdict = grade(r"\boxed{5}", gold)
    assert verdict.outcome == "ungradable"
    assert "gold" in verdict.reason


@pytest.mark.parametrize("answer", [r"(\ln 0, 2) \cup (3, 4)", r"\frac{0}{0} \approx 5", r"x < \frac{1}{0}"])
def test_an_answer_without_a_value_is_wrong_and_no_fault_of_the_gold_answer(answer: str) -> None:
    for gold in ("5", r"(1,2) \cup (3,4)", "x < 1"):
        assert grade(f"\\boxed{{{answer}}}", gold).outcome == "wrong"


def test_an_unreadable_gold_answer_is_still_right_when_repeated() -> None:
    assert grade(r"\boxed{\int_0^1 x\,dx}", r"\int_0^1 x dx").outcome == "right"


@pytest.mark.parametrize("gold", ["4*12=<<4*12=48>>48 washes\n#### 48", r"We get $\boxed{48}.$"])
def test_the_answer_is_found_in_a_gold_solution(gold: str) -> None:
    assert grade(r"\boxed{48}", gold).outcome == "right"
    assert grade(r"\boxed{4}", gold).outcome == "wrong"
