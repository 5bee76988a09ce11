(** Exact numbers a + b phi as pairs (a, b) over a carrier, as the running code keeps them; what they are on the reals. *)

Require Import Reals Lra Lia ZArith QArith Qreals.
From Karat Require Import Carrier Golden.

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition golden : Type := K * K.
Definition lift (a : K) : golden := (a, zero).
Definition phi_pair : golden := (zero, one).
Definition minus (x y : golden) : golden := (fst x - fst y, snd x - snd y).
(** phi^2 = phi + 1 *)
Definition times (x y : golden) : golden :=
  (fst x * fst y + snd x * snd y, fst x * snd y + snd x * fst y + snd x * snd y).
Definition norm (x : golden) : K := fst x * fst x + fst x * snd x - snd x * snd x.
(** The conjugate over the norm. *)
Definition inverse (x : golden) : golden := ((fst x + snd x) / norm x, opp (snd x) / norm x).
Definition divide (x y : golden) : golden := times x (inverse y).
Fixpoint power (x : golden) (n : nat) : golden := match n with O => lift one | S m => times (power x m) x end.
Definition power_Z (x : golden) (n : Z) : golden :=
  if Z.leb 0 n then power x (Z.to_nat n) else power (inverse x) (Z.to_nat (- n)).

(** Whether a + b phi >= 0: the sign of u + v sqrt 5, with u = 2a + b and v = b, by squares. *)
Definition nonnegative (x : golden) : bool :=
  let u := of_Z 2 * fst x + snd x in let v := snd x in
  if zero <=? u then (zero <=? v) || (of_Z 5 * v * v <=? u * u)
  else (zero <=? v) && (u * u <=? of_Z 5 * v * v).
Definition at_most (x y : golden) : bool := nonnegative (minus y x).
End D.

Arguments golden : clear implicits.

Local Open Scope R_scope.

Definition value (x : golden on_R) : R := fst x + snd x * phi.
Definition rational_value (x : Q * Q) : R := Q2R (fst x) + Q2R (snd x) * phi.

Lemma value_lift (a : R) : value (lift (K := on_R) a) = a.
Proof. unfold value, lift, zero; simpl. lra. Qed.

Lemma value_phi : value (phi_pair (K := on_R)) = phi.
Proof. unfold value, phi_pair, zero, one; simpl. lra. Qed.

Lemma value_minus (x y : golden on_R) : value (minus x y) = value x - value y.
Proof. unfold value, minus; simpl. lra. Qed.

Lemma phi_times_phi : phi * phi = phi + 1.
Proof. rewrite <- phi_squared. ring. Qed.

Lemma value_times (x y : golden on_R) : value (times x y) = value x * value y.
Proof.
  destruct x as [a b], y as [c d]. unfold value, times; simpl in *.
  transitivity (a * c + (a * d + b * c) * phi + b * d * (phi + 1)); [ring | rewrite <- phi_times_phi; ring].
Qed.

Lemma value_inverse (x : golden on_R) : norm x <> 0 -> value (inverse x) = / value x.
Proof.
  destruct x as [a b]. unfold value, inverse, norm, opp, zero; simpl in *. intro N.
  assert (E : (a + b * phi) * (a + b - b * phi) = a * a + a * b - b * b).
  { transitivity (a * a + a * b + b * b * phi - b * b * (phi * phi)); [ring | rewrite phi_times_phi; ring]. }
  assert (V : a + b * phi <> 0) by (intro Z; rewrite Z in E; lra).
  apply Rmult_eq_reg_l with (a + b * phi); [|exact V]. rewrite Rinv_r by exact V.
  transitivity ((a + b * phi) * (a + b - b * phi) / (a * a + a * b - b * b)); [field; exact N | rewrite E; field; exact N].
Qed.

Lemma value_power (x : golden on_R) (n : nat) : value (power x n) = value x ^ n.
Proof.
  induction n as [|n IH]; [apply value_lift|]. simpl. rewrite value_times, IH. ring.
Qed.

Lemma norm_phi : norm (phi_pair (K := on_R)) = -1.
Proof. unfold norm, phi_pair, zero, one; simpl. lra. Qed.

(** The pair computed for phi^n is phi^n, for every integer n. *)
Theorem value_power_Z : forall n : Z, value (power_Z (phi_pair (K := on_R)) n) = powerRZ phi n.
Proof.
  intro n. pose proof phi_positive. unfold power_Z. destruct (Z.leb_spec 0 n) as [Hn|Hn].
  - rewrite value_power, value_phi. rewrite <- (Z2Nat.id n) at 2 by lia. apply pow_powerRZ.
  - rewrite value_power, value_inverse by (rewrite norm_phi; lra). rewrite value_phi.
    replace n with (- Z.of_nat (Z.to_nat (- n)))%Z at 2 by lia.
    rewrite powerRZ_neg', <- pow_powerRZ, pow_inv by lra. reflexivity.
Qed.

Lemma sign_by_squares (u v : R) : 0 <= u -> 0 <= v -> (v * sqrt 5 <= u <-> 5 * v * v <= u * u).
Proof.
  intros Hu Hv. pose proof sqrt5_squared as E. destruct sqrt5_enclosed as [L _].
  assert (P : 0 <= v * sqrt 5) by (apply Rmult_le_pos; lra).
  assert (S : (v * sqrt 5) * (v * sqrt 5) = 5 * v * v)
    by (transitivity (v * v * (sqrt 5 * sqrt 5)); [ring | rewrite E; ring]).
  split; intro H; [nra|]. apply Rnot_lt_le. intro N. nra.
Qed.

Lemma sign_by_squares' (u v : R) : 0 <= u -> 0 <= v -> (u <= v * sqrt 5 <-> u * u <= 5 * v * v).
Proof.
  intros Hu Hv. pose proof sqrt5_squared as E. destruct sqrt5_enclosed as [L _].
  assert (P : 0 <= v * sqrt 5) by (apply Rmult_le_pos; lra).
  assert (S : (v * sqrt 5) * (v * sqrt 5) = 5 * v * v)
    by (transitivity (v * v * (sqrt 5 * sqrt 5)); [ring | rewrite E; ring]).
  split; intro H; [nra|]. apply Rnot_lt_le. intro N. nra.
Qed.

Lemma Rleb_true (x y : R) : Rleb x y = true <-> x <= y.
Proof. generalize (Rleb_spec x y). destruct (Rleb x y); intro H; split; intro G; try reflexivity; try discriminate; lra. Qed.

(** The order that is decided by squares is the order of the reals. *)
Theorem nonnegative_is_order : forall x : golden on_R, nonnegative x = true <-> 0 <= value x.
Proof.
  intros [a b]. unfold nonnegative, value, zero; simpl.
  assert (E : a + b * phi = ((2 * a + b) + b * sqrt 5) / 2) by (unfold phi; field).
  rewrite E. clear E. generalize (2 * a + b). intro u. destruct sqrt5_enclosed as [L _].
  generalize (Rleb_spec 0 u) (Rleb_spec 0 b). destruct (Rleb 0 u), (Rleb 0 b); simpl; intros Hu Hb; rewrite ?Rleb_true.
  - assert (0 <= b * sqrt 5) by (apply Rmult_le_pos; lra). split; [lra | reflexivity].
  - destruct (sign_by_squares u (- b) ltac:(lra) ltac:(lra)) as [S1 S2].
    split; intro H; [assert (- b * sqrt 5 <= u) by (apply S2; lra); lra|].
    assert (5 * - b * - b <= u * u) by (apply S1; lra). lra.
  - destruct (sign_by_squares' (- u) b ltac:(lra) ltac:(lra)) as [S1 S2].
    split; intro H; [assert (- u <= b * sqrt 5) by (apply S2; lra); lra|].
    assert (- u * - u <= 5 * b * b) by (apply S1; lra). lra.
  - assert (0 < - b * sqrt 5) by (apply Rmult_lt_0_compat; lra). split; [discriminate | lra].
Qed.

Lemma at_most_is_order (x y : golden on_R) : at_most x y = true <-> value x <= value y.
Proof. unfold at_most. rewrite nonnegative_is_order, value_minus. split; intro; lra. Qed.
